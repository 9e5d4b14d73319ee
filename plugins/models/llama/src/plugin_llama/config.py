"""config.json of Llama and Mistral checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.spec import AttentionSpec, ModelSpec
from core.layers.config import ConfigReader, check_heads, group_layers, head_size
from core.layers.rope_config import RopeSpec, rope_spec


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """What the model needs beyond its ModelSpec. attention_bias: on q, k, v and o; mlp_bias: on gate, up and down."""

    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    activation: str
    attention_bias: bool
    mlp_bias: bool


def read_config(hf_config: Mapping[str, Any], architecture: str, *, sliding: bool) -> ModelSpec:
    """`sliding`: whether the architecture reads `sliding_window` and `layer_types`. Raises CheckpointError naming a
    bad field."""
    reader = ConfigReader(hf_config)
    hidden_size = reader.size("hidden_size")
    num_layers = reader.size("num_hidden_layers")
    num_heads = reader.size("num_attention_heads")
    num_kv_heads = reader.size("num_key_value_heads", num_heads)
    check_heads(num_heads, num_kv_heads)
    head_dim = head_size(reader, hidden_size, num_heads)
    windows: list[int | None] = [None] * num_layers
    if sliding:
        window = reader.optional_size("sliding_window")
        windows = reader.windows(num_layers, window, [window is not None] * num_layers)
    layers, groups = group_layers(
        [AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window=window) for window in windows]
    )
    rope = rope_spec(hf_config, head_dim)
    return ModelSpec(
        architecture=architecture,
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        layers=layers,
        cache_groups=groups,
        context_length=rope.context_length,
        dtype=reader.dtype(),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        eos_token_ids=reader.eos_token_ids(),
        arch=LlamaConfig(
            intermediate_size=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", 1e-6),
            rope=rope,
            activation=reader.activation(),
            attention_bias=reader.flag("attention_bias", False),
            mlp_bias=reader.flag("mlp_bias", False),
        ),
    )
