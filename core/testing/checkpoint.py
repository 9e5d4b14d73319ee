"""A small random checkpoint in Hugging Face layout, with a working tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")

CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""

_CORPUS = (
    "The quick brown fox jumps over the lazy dog and the dog barks at the fox in the morning.",
    "Hello, how are you? I am fine, thank you. What is the weather like today?",
    "One two three four five six seven eight nine ten. 0 1 2 3 4 5 6 7 8 9 10 11 12 100 2026",
    'user assistant system tool name arguments content: {"name": "get_weather", "arguments": {"city": "Paris"}}',
    "Grüße aus Köln, voilà le café, こんにちは世界, 你好，世界, привет мир, 🙂🚀",
)

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # wide enough that no two logits are close
}


def write_tiny_tokenizer(folder: Path, *, vocab_size: int = 400) -> int:
    """Write tokenizer.json (byte-level BPE) and tokenizer_config.json (with a ChatML chat template) to `folder`.

    Ids: SPECIAL_TOKENS first, then bytes, then merges. Returns the number of tokens, at most `vocab_size`. The same
    input gives the same files.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "model_max_length": _TINY["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return int(tokenizer.get_vocab_size())


def write_tiny_checkpoint(
    folder: Path,
    model_type: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Write config.json, random safetensors weights and a tokenizer to `folder`; returns `folder`.

    model_type: as in config.json, any that the installed transformers can build. config: fields of its configuration,
    over small defaults of those that most architectures have; give the sizes of experts and the like, whose defaults
    in transformers are those of full-size models. dtype: of the weights. max_shard_size: e.g. "50KB" for a sharded
    checkpoint with an index.
    Needs transformers; raises its ValueError for an unknown model_type.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    num_tokens = write_tiny_tokenizer(folder)
    fields: dict[str, Any] = {
        **_TINY,
        "vocab_size": num_tokens,
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|endoftext|>"),
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf_config = AutoConfig.for_model(model_type, **fields)
        model = AutoModelForCausalLM.from_config(hf_config, dtype=getattr(torch, dtype))
        for buffer in model.buffers():
            if buffer.is_floating_point() and not buffer.any():  # zero in a new model, which would test nothing
                buffer.normal_(0.0, 0.1)
    model.save_pretrained(folder, max_shard_size=max_shard_size, safe_serialization=True)
    return folder
