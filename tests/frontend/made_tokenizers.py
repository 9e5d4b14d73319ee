"""Small real tokenizers, trained on the spot, in the layouts that checkpoints have."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Numbers 0 1 2 3 4 5 6 7 8 9 and 42.",
    "Grüße aus Köln! Les élèves étudient. 日本語のテキスト。 Привет, мир. 🙂👩‍👩‍👧",
    "def f(x):\n    return {'a': [1, 2, x]}\n\n",
    "hello hello hello world world STOP END user assistant system tool",
]

CHAT_TEMPLATE = """{%- if tools %}<|im_start|>system
You may call: {{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}
<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif -%}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor -%}
<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if open_thinking %}<think>
{% endif %}{% endif %}"""


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def byte_level_folder(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A byte-level BPE with chat markers, no begin-of-text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<think>", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write(folder, "tokenizer_config.json", config)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    end = tokenizer.token_to_id("<|im_end|>")
    write(folder, "config.json", {"eos_token_id": end, "model_type": "nothing"})
    write(folder, "generation_config.json", {"eos_token_id": [end, tokenizer.token_to_id("<|endoftext|>")]})
    return folder


def metaspace_folder(folder: Path, **config: object) -> Path:
    """A SentencePiece-like BPE: blanks as U+2581, bytes where characters are unknown, begin-of-text added."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS[0].replace(" ", "▁"), CORPUS[3].replace(" ", "▁")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in ("<unk>", "<s>", "</s>")
    state["added_tokens"] = [token for token in state["added_tokens"] if token["special"]]
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    write(
        folder,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"content": "<s>", "__type": "AddedToken"},
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}",
            **config,
        },
    )
    write(folder, "config.json", {"eos_token_id": tokenizer.token_to_id("</s>")})
    return folder
