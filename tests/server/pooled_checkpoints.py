"""Small random checkpoints that embed, score and judge, and the same by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from core.testing.checkpoint import SPECIAL_TOKENS, write_tiny_checkpoint, write_tiny_tokenizer

END = SPECIAL_TOKENS.index("<|endoftext|>")
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1, "head_dim": 8,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def closing(folder: Path) -> None:
    """The tokenizer puts an end-of-text token behind each text, as embedding checkpoints' tokenizers do."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    end = SPECIAL_TOKENS[END]
    tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, END)])
    tokenizer.save(str(path))


def with_words(folder: Path, *words: str) -> None:
    """Each of `words` is one token."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(list(words))
    tokenizer.save(str(path))


def write_modules(folder: Path, pooling: str = "lasttoken", normalize: bool = True) -> None:
    """The files in which sentence-transformers says how it pools."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    listed = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    modes = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False) | {pooling: True}
    flags = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))


def write_embedder(folder: Path, *, headless: bool = True, modules: bool = True, **config: Any) -> Path:
    """As embedding checkpoints are published: a causal model's name, tensors without "model." and without a head."""
    write_tiny_checkpoint(folder, "qwen3", **{**SMALL, "tie_word_embeddings": False, **config})
    closing(folder)
    if modules:
        write_modules(folder)
    if headless:
        tensors = load_file(folder / "model.safetensors")
        kept = {name.removeprefix("model."): t for name, t in tensors.items() if not name.startswith("lm_head")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_classifier(folder: Path, model_type: str, num_labels: int, **config: Any) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    vocab_size = write_tiny_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fields = {**SMALL, "vocab_size": vocab_size, "num_labels": num_labels, **config}
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **fields))
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data.normal_(0.3, 0.2)
    model.float().eval().save_pretrained(folder)
    return folder


def hidden_states(folder: Path, architecture: str = "Qwen3Model") -> Callable[[Sequence[int]], np.ndarray]:
    """ids -> final hidden states [T, D]."""
    import transformers

    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(ids: Sequence[int]) -> np.ndarray:
        return model(torch.tensor([list(ids)])).last_hidden_state[0].numpy()

    return run


def logits(folder: Path, architecture: str) -> Callable[[Sequence[int]], np.ndarray]:
    """ids -> what the model's forward gives for the one text: [labels], or [T, V]."""
    import transformers

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = getattr(transformers, architecture).from_pretrained(folder, **options).eval()

    @torch.inference_mode()
    def run(ids: Sequence[int]) -> np.ndarray:
        return model(torch.tensor([list(ids)])).logits[0].numpy()

    return run
