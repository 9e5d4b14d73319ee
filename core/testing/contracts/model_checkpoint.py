"""Small random checkpoints of a model's own shape, faults put into them, and transformers as the reference."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

Reference = Callable[[Sequence[int]], torch.Tensor]

_CLASSIFIER = "ForSequenceClassification"
_HEADLESS = re.compile(r"(?<!Head)Model$")  # older classes with a head are called "…LMHeadModel"
_NOT_FIELDS = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version")
WEIGHTS = "model.safetensors"


def write_with_transformers(config: Mapping[str, Any], folder: Path, seed: int = 0) -> None:
    """config.json and random float32 weights of the model that transformers builds for `config["model_type"]`: one that
    generates, or a classifier or a model without a head where `architectures` names one."""
    from transformers import AutoConfig

    fields = {name: value for name, value in config.items() if name not in _NOT_FIELDS}
    hf_config = AutoConfig.for_model(config["model_type"], **fields)
    model = _auto_class(config).from_config(hf_config, dtype=torch.float32)
    randomise(model, seed)
    model.eval().save_pretrained(folder, safe_serialization=True)


def transformers_reference(folder: Path) -> Reference:
    """Token ids -> logits [T, vocab_size, labels or hidden_size] float32, the whole text at once, without a cache."""
    auto = _auto_class(read_config(folder))
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def logits(tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(tokens)])
        if hasattr(model, "score"):  # its own forward scores the last token alone
            return model.score(model.base_model(ids, use_cache=False).last_hidden_state)[0].float()
        out = model(ids, use_cache=False)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0].float()

    return logits


def _auto_class(config: Mapping[str, Any]) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    name = (config.get("architectures") or [""])[0]
    if name.endswith(_CLASSIFIER):
        return AutoModelForSequenceClassification
    return AutoModel if _HEADLESS.search(name) else AutoModelForCausalLM


def randomise(model: nn.Module, seed: int) -> None:
    """Weights that make logits of order 1 and attention uneven; norms and biases away from 1 and 0, so that none can be
    left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():  # corrections of a router's choice and the like
        if name in stored and buffer.is_floating_point():
            buffer.data.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            scaled = "norm" in name or ("ln_" in name and name.endswith("weight"))
            parameter.data.copy_(noise * 0.2 + (1.0 if scaled else 0.0))
        else:
            parameter.data.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in one file."""
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def write_variant(folder: Path, place: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A copy of the checkpoint in `folder`, with `tensors` for weights."""
    from safetensors.torch import save_file

    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "config.json", place / "config.json")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / WEIGHTS)
    return place


def one_of_each(names: Sequence[str]) -> list[str]:
    """One name of each pattern: those that differ in numbers (layer, expert) are alike. The last one is taken, so that
    the first layer, which is tried most by hand, is not the only one."""
    chosen = {re.sub(r"\d+", "#", name): name for name in sorted(names)}
    return sorted(chosen.values())


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config
