"""config.json of Gemma 2 checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import AttentionSpec, ModelSpec
from core.layers.config import ACTIVATIONS, ConfigReader, check_heads, group_layers
from core.layers.rope_config import RopeSpec, rope_spec


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    """What the model needs beyond its ModelSpec. logit_softcap: of the final logits; None is off."""

    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    activation: str
    attention_bias: bool
    logit_softcap: float | None


def read_gemma2(hf_config: Mapping[str, Any], architecture: str, *, classifies: bool = False) -> ModelSpec:
    """Raises CheckpointError naming a bad field. Defaults are those of the family's published configuration."""
    reader = ConfigReader(hf_config)
    num_layers = reader.size("num_hidden_layers")
    num_heads = reader.size("num_attention_heads")
    num_kv_heads = reader.size("num_key_value_heads", 4)
    check_heads(num_heads, num_kv_heads)
    head_dim = reader.size("head_dim", 256)
    if reader.flag("use_bidirectional_attention", False):
        raise CheckpointError("config.json: use_bidirectional_attention = true, but core's attention is causal")
    scalar = _positive(reader, "query_pre_attn_scalar", 256.0)
    softcap = _softcap(reader, "attn_logit_softcapping", 50.0)
    layers, groups = group_layers(
        [
            AttentionSpec(num_heads, num_kv_heads, head_dim, scalar**-0.5, window=window, softcap=softcap)
            for window in _windows(reader, num_layers)
        ]
    )
    rope = rope_spec(hf_config, head_dim)
    return ModelSpec(
        architecture=architecture,
        vocab_size=reader.size("vocab_size"),
        hidden_size=reader.size("hidden_size"),
        layers=layers,
        cache_groups=groups,
        context_length=rope.context_length,
        dtype=reader.dtype(),
        tie_word_embeddings=reader.flag("tie_word_embeddings", True),
        eos_token_ids=reader.eos_token_ids(),
        task="classify" if classifies else "generate",
        labels=reader.labels() if classifies else (),
        arch=GemmaConfig(
            intermediate_size=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", 1e-6),
            rope=rope,
            activation=_activation(reader),
            attention_bias=reader.flag("attention_bias", False),
            logit_softcap=_softcap(reader, "final_logit_softcapping", 30.0),
        ),
    )


def _windows(reader: ConfigReader, num_layers: int) -> list[int | None]:
    """Without `layer_types`, every other layer has a window, the first one too."""
    return reader.windows(num_layers, reader.size("sliding_window", 4096), [i % 2 == 0 for i in range(num_layers)])


def _softcap(reader: ConfigReader, name: str, default: float) -> float | None:
    """null is off; absent is the default."""
    if name in reader.config and reader.config[name] is None:
        return None
    return _positive(reader, name, default)


def _positive(reader: ConfigReader, name: str, default: float) -> float:
    value = reader.number(name, default)
    if value <= 0:
        raise CheckpointError(f"config.json: {name} = {value}, but it must be greater than 0")
    return value


def _activation(reader: ConfigReader) -> str:
    """`hidden_activation`; checkpoints carry a `hidden_act` too, which does not count."""
    name = reader.text("hidden_activation", "gelu_pytorch_tanh")
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: hidden_activation = {name!r} is unknown", hint=f"known: {', '.join(ACTIVATIONS)}"
        )
    return name
