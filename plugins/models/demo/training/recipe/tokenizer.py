"""Trains the byte-level BPE tokenizer and writes tokenizer files and the chat template.

    python -m recipe.tokenizer --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from recipe.chat import TOOLS_HEAD, TOOLS_TAIL, render, training_chat

VOCAB_SIZE = 4096
CONTEXT_LENGTH = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # never part of an answer's text
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # one token each, but text: parsers must see them

# Newlines and digits stand alone, words take the space before them. Pieces of `render` therefore tokenize on their
# own as they do in the whole text.
_PIECES = r"\n|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|[^\S\n]"

_TEMPLATE = """\
{%- set first = messages[0] if messages else none -%}
{%- set has_system = first and first.role == 'system' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if has_system -%}{{- first.content + '\\n\\n' -}}{%- endif -%}
{{- HEAD -}}
{%- for tool in tools -%}{{- tool | tojson -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}{%- endfor -%}
{{- TAIL + '<|im_end|>\\n' -}}
{%- elif has_system -%}
{{- '<|im_start|>system\\n' + first.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'assistant' -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{{- '<|im_start|>assistant\\n' + content -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function if call.function else call -%}
{%- if content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
{%- if call.arguments is string -%}{{- call.arguments -}}{%- else -%}{{- call.arguments | tojson -}}{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking -%}{{- '<think>\\n' -}}{%- endif -%}
{%- endif -%}
"""


def chat_template() -> str:
    """The Jinja template; `render` in recipe.chat writes the same text."""
    return _TEMPLATE.replace("HEAD", json.dumps(TOOLS_HEAD)).replace("TAIL", json.dumps(TOOLS_TAIL))


def train(num_chats: int, seed: int) -> Tokenizer:
    """A tokenizer of VOCAB_SIZE entries trained on the first chats of the training stream."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL]
        + [AddedToken(t, special=False, normalized=False) for t in MARKERS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Markers are left out, or merges such as "?<|" would be learned.
    marker = re.compile("|".join(map(re.escape, (*SPECIAL, *MARKERS))))
    chats = (render(training_chat(seed, i, 1024)) for i in range(num_chats))
    texts = (marker.sub("\n", "".join(text for text, _ in chat)) for chat in chats)
    tokenizer.train_from_iterator(texts, trainer)
    _clear_special_flag(tokenizer)
    return tokenizer


def _clear_special_flag(tokenizer: Tokenizer) -> None:
    # The trainer flags everything in its list as special; a decoder that skips special tokens would then hide
    # <think> and <tool_call> from the parsers.
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    fixed = Tokenizer.from_str(json.dumps(data))
    tokenizer.__setstate__(fixed.__getstate__())


def tokenizer_config() -> dict[str, Any]:
    """What tokenizer_config.json says."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "model_max_length": CONTEXT_LENGTH,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chats", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(args.chats, args.seed)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
    (args.out / "chat_template.jinja").write_text(chat_template())
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
