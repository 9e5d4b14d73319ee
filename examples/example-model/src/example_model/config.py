"""config.json of GPT-2 checkpoints. Core reads specs in processes that have no torch, so nothing here imports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import AttentionSpec, ModelSpec
from core.layers.config import ConfigReader, group_layers

# Activations of the plain (not gated) feed-forward layer -> torch's name of the approximation.
ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class Gpt2Config:
    """What the module needs beyond the spec. num_positions: rows of the learned position table."""

    inner_size: int
    num_positions: int
    norm_eps: float
    activation: str


def read_config(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Raises CheckpointError naming a bad field."""
    reader = ConfigReader(hf_config)  # its accessors do the type checks and word the errors
    hidden_size = reader.size("n_embd")
    num_heads = reader.size("n_head")
    if hidden_size % num_heads:
        raise CheckpointError(f"config.json: n_embd = {hidden_size} is not a multiple of n_head = {num_heads}")
    if reader.flag("add_cross_attention", False):
        raise CheckpointError("config.json: add_cross_attention is true; there is no encoder to attend to")
    activation = reader.text("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: activation_function = {activation!r} is unknown", hint=f"known: {', '.join(ACTIVATIONS)}"
        )
    num_positions = reader.size("n_positions", 1024)
    scale = (hidden_size // num_heads) ** -0.5 if reader.flag("scale_attn_weights", True) else 1.0
    by_layer = reader.flag("scale_attn_by_inverse_layer_idx", False)
    # Layers may have rules of their own. Those that remember alike share a cache group, which `group_layers` finds.
    layers, groups = group_layers(
        [
            AttentionSpec(num_heads, num_heads, hidden_size // num_heads, scale / (index + 1 if by_layer else 1))
            for index in range(reader.size("n_layer"))
        ]
    )
    return ModelSpec(
        architecture="GPT2LMHeadModel",
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        layers=layers,
        cache_groups=groups,
        # A learned position table ends where it ends: core refuses longer requests, so no position is out of range.
        context_length=num_positions,
        dtype=reader.dtype(),
        tie_word_embeddings=reader.flag("tie_word_embeddings", True),
        eos_token_ids=reader.eos_token_ids(),
        arch=Gpt2Config(
            inner_size=reader.size("n_inner", 4 * hidden_size),
            num_positions=num_positions,
            norm_eps=reader.number("layer_norm_epsilon", 1e-5),
            activation=ACTIVATIONS[activation],
        ),
    )
