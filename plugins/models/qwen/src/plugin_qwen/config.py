"""config.json of Qwen 2, 2.5, 3 and Qwen 3 mixture-of-experts checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import AttentionSpec, ModelSpec, Task
from core.layers.config import ConfigReader, check_heads, group_layers, head_size
from core.layers.rope_config import RopeSpec, rope_spec


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """sparse_layers: indices of the layers with experts; the others have a plain MLP. renormalize: whether the top-k
    probabilities are scaled to sum to one."""

    num_experts: int
    top_k: int
    intermediate_size: int
    renormalize: bool
    sparse_layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class QwenConfig:
    """What the model needs beyond its ModelSpec. qk_norm: RMS norm of each query and key head."""

    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    activation: str
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    moe: MoeConfig | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """What sets the architectures apart.

    qkv_bias: True as in Qwen 2; None reads `attention_bias`, which is then on the output projection too.
    head_dim: default where config.json has none. windows_by_layer: whether `layer_types` and `max_window_layers`
    choose the layers with a sliding window; otherwise all layers have it or none. task: what the head is for, if one.
    """

    architecture: str
    qkv_bias: bool | None
    qk_norm: bool
    head_dim: int | None = None
    windows_by_layer: bool = True
    moe: bool = False
    task: Task = "generate"


QWEN2 = Family("Qwen2ForCausalLM", qkv_bias=True, qk_norm=False)
QWEN3 = Family("Qwen3ForCausalLM", qkv_bias=None, qk_norm=True, head_dim=128)
QWEN2_CLASSIFIER = replace(QWEN2, architecture="Qwen2ForSequenceClassification", task="classify")
QWEN3_CLASSIFIER = replace(QWEN3, architecture="Qwen3ForSequenceClassification", task="classify")
QWEN2_HEADLESS = replace(QWEN2, architecture="Qwen2Model", task="embed")
QWEN3_HEADLESS = replace(QWEN3, architecture="Qwen3Model", task="embed")
QWEN3_MOE = Family("Qwen3MoeForCausalLM", qkv_bias=None, qk_norm=True, windows_by_layer=False, moe=True)


def read_config(hf_config: Mapping[str, Any], family: Family) -> ModelSpec:
    """Raises CheckpointError naming a bad field."""
    reader = ConfigReader(hf_config)
    hidden_size = reader.size("hidden_size")
    num_layers = reader.size("num_hidden_layers")
    num_heads = reader.size("num_attention_heads")
    num_kv_heads = reader.size("num_key_value_heads", num_heads)
    check_heads(num_heads, num_kv_heads)
    head_dim = head_size(reader, hidden_size, num_heads, family.head_dim)
    layers, groups = group_layers(
        [
            AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window=window)
            for window in _windows(reader, num_layers, family)
        ]
    )
    rope = rope_spec(hf_config, head_dim)
    moe = _moe(reader, num_layers) if family.moe else None
    attention_bias = reader.flag("attention_bias", False)
    return ModelSpec(
        architecture=family.architecture,
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        layers=layers,
        cache_groups=groups,
        context_length=rope.context_length,
        dtype=reader.dtype(),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        eos_token_ids=reader.eos_token_ids(),
        num_experts=moe.num_experts if moe else 0,
        task=family.task,
        labels=reader.labels() if family.task == "classify" else (),
        arch=QwenConfig(
            intermediate_size=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", 1e-6),
            rope=rope,
            activation=reader.activation(only_silu=moe is not None),
            qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
            out_bias=attention_bias if family.qkv_bias is None else False,
            qk_norm=family.qk_norm,
            moe=moe,
        ),
    )


def _windows(reader: ConfigReader, num_layers: int, family: Family) -> list[int | None]:
    """`sliding_window` counts only where `use_sliding_window` is on (default: off)."""
    window = reader.optional_size("sliding_window") if reader.flag("use_sliding_window", False) else None
    if not family.windows_by_layer:
        return [window] * num_layers
    first = reader.count("max_window_layers", 28)
    return reader.windows(num_layers, window, [window is not None and i >= first for i in range(num_layers)])


def _moe(reader: ConfigReader, num_layers: int) -> MoeConfig:
    # transformers 5 writes num_local_experts where 4 wrote num_experts.
    name = "num_experts" if reader.config.get("num_experts") is not None else "num_local_experts"
    num_experts = reader.size(name, 128)
    top_k = reader.size("num_experts_per_tok", 8)
    if top_k > num_experts:
        raise CheckpointError(f"config.json: num_experts_per_tok = {top_k} exceeds {name} = {num_experts}")
    dense = set(reader.int_list("mlp_only_layers"))
    step = reader.size("decoder_sparse_step", 1)
    return MoeConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=reader.size("moe_intermediate_size"),
        renormalize=reader.flag("norm_topk_prob", False),
        sparse_layers=frozenset(i for i in range(num_layers) if i not in dense and (i + 1) % step == 0),
    )
