"""Core's contract of model plugins, and of the package as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.testing.contracts.distribution import DistributionContract
from core.testing.contracts.model import ModelContract

SMALL: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": 2,
}


class TestGpt2(ModelContract):
    name = "GPT2LMHeadModel"
    required_fields = ("vocab_size", "n_embd", "n_layer", "n_head")

    def configs(self) -> Sequence[Mapping[str, Any]]:
        other = {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "n_inner": 40}
        return [SMALL, {**SMALL, **other, "activation_function": "gelu"}]


class TestPackage(DistributionContract):
    package = "example_model"
