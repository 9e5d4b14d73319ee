"""config.json of GLM-4, GLM-4.5 to 4.7 and GLM-4.7-Flash checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import AttentionSpec, ModelSpec
from core.layers.config import ConfigReader, check_heads, group_layers, head_size
from core.layers.rope_config import RopeSpec, latent_scale, rope_spec
from core.layers.router_config import RouterSpec


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """intermediate_size: of one routed expert. shared_intermediate_size: of all shared experts together, 0 for none.
    sparse_layers: indices of the layers with experts; the others have a plain MLP."""

    router: RouterSpec
    intermediate_size: int
    shared_intermediate_size: int
    sparse_layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """q_lora_rank: width of the narrow query projection, None where queries are projected at once."""

    q_lora_rank: int | None


@dataclass(frozen=True, slots=True)
class Glm4Config:
    """What the model needs beyond its ModelSpec.

    rope_interleaved: rotary pairs are neighbours. attention_bias: of the projections that read the layer's input, and
    with latent attention of the output. num_mtp_layers: layers of multi-token prediction behind the last.
    """

    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    rope_interleaved: bool
    activation: str
    attention_bias: bool
    qk_norm: bool = False
    sandwich: bool = False
    moe: MoeConfig | None = None
    latent: LatentConfig | None = None
    num_mtp_layers: int = 0


def read_glm4(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Glm4ForCausalLM. Raises CheckpointError naming a bad field."""
    reader = ConfigReader(hf_config)
    attention, rope = _grouped_attention(reader, default_head_dim=128)
    return _spec(
        "Glm4ForCausalLM",
        reader,
        attention,
        Glm4Config(
            intermediate_size=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", 1.5625e-07),
            rope=rope,
            rope_interleaved=True,
            activation=reader.activation(),
            attention_bias=reader.flag("attention_bias", True),
            sandwich=True,
        ),
    )


def read_glm4_moe(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Glm4MoeForCausalLM. Raises CheckpointError naming a bad field."""
    reader = ConfigReader(hf_config)
    attention, rope = _grouped_attention(reader)
    return _spec(
        "Glm4MoeForCausalLM",
        reader,
        attention,
        Glm4Config(
            intermediate_size=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", 1e-5),
            rope=rope,
            rope_interleaved=False,
            activation=reader.activation(),
            attention_bias=reader.flag("attention_bias", False),
            qk_norm=reader.flag("use_qk_norm", False),
            moe=_moe(reader, _first_dense(reader)),
            num_mtp_layers=_mtp_layers(reader, 1),
        ),
    )


def read_glm4_moe_lite(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Glm4MoeLiteForCausalLM. Raises CheckpointError naming a bad field."""
    reader = ConfigReader(hf_config)
    num_heads = reader.size("num_attention_heads")
    if (kv_heads := reader.size("num_key_value_heads", num_heads)) != num_heads:
        raise CheckpointError(
            f"config.json: num_key_value_heads = {kv_heads} differs from num_attention_heads = {num_heads}, but latent "
            "attention has as many of one as of the other"
        )
    rope_dim = reader.size("qk_rope_head_dim")
    rope = rope_spec(hf_config, rope_dim)
    if rope.rotary_dim != rope_dim:
        raise CheckpointError(
            f"config.json: partial_rotary_factor turns {rope.rotary_dim} of qk_rope_head_dim = {rope_dim} dims, but "
            "latent attention turns them all"
        )
    head_dim = reader.size("qk_nope_head_dim") + rope_dim
    rule = AttentionSpec(
        num_heads,
        1,
        head_dim,
        latent_scale(rope, head_dim),
        reader.size("v_head_dim"),
        latent_dim=reader.size("kv_lora_rank"),
        rope_dim=rope_dim,
    )
    return _spec(
        "Glm4MoeLiteForCausalLM",
        reader,
        rule,
        Glm4Config(
            intermediate_size=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", 1e-5),
            rope=rope,
            rope_interleaved=reader.flag("rope_interleave", True),
            activation=reader.activation(),
            attention_bias=reader.flag("attention_bias", False),
            moe=_moe(reader, _layer_types(reader)),
            latent=LatentConfig(reader.optional_size("q_lora_rank")),
            num_mtp_layers=_mtp_layers(reader, 0),
        ),
    )


def _spec(architecture: str, reader: ConfigReader, attention: AttentionSpec, arch: Glm4Config) -> ModelSpec:
    layers, groups = group_layers([attention] * reader.size("num_hidden_layers"))
    return ModelSpec(
        architecture=architecture,
        vocab_size=reader.size("vocab_size"),
        hidden_size=reader.size("hidden_size"),
        layers=layers,
        cache_groups=groups,
        context_length=arch.rope.context_length,
        dtype=reader.dtype(),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        eos_token_ids=reader.eos_token_ids(),
        num_experts=arch.moe.router.num_experts if arch.moe else 0,
        arch=arch,
    )


def _grouped_attention(reader: ConfigReader, default_head_dim: int | None = None) -> tuple[AttentionSpec, RopeSpec]:
    """Of every layer. Half of a head is turned where config.json does not say."""
    num_heads = reader.size("num_attention_heads")
    num_kv_heads = reader.size("num_key_value_heads", num_heads)
    check_heads(num_heads, num_kv_heads)
    head_dim = head_size(reader, reader.size("hidden_size"), num_heads, default_head_dim)
    rope = rope_spec(reader.config, head_dim, default_partial=0.5)
    return AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5), rope


def _moe(reader: ConfigReader, sparse_layers: frozenset[int]) -> MoeConfig:
    # transformers 5 may write num_local_experts for n_routed_experts.
    name = "num_local_experts" if reader.config.get("n_routed_experts") is None else "n_routed_experts"
    if reader.config.get(name) is None:
        name = "n_routed_experts"  # the one to report as missing
    for field, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        if (value := reader.text(field, known)) != known:
            raise CheckpointError(f"config.json: {field} = {value!r}, but this architecture has {known!r}")
    router = RouterSpec(
        num_experts=reader.size(name),
        top_k=reader.size("num_experts_per_tok"),
        scoring="sigmoid",
        renormalize=reader.flag("norm_topk_prob", True),
        scale=reader.number("routed_scaling_factor", 1.0),
        correction_bias=True,
        num_groups=reader.size("n_group", 1),
        topk_groups=reader.size("topk_group", 1),
        float32=True,
    )
    router.check(experts=name, top_k="num_experts_per_tok")
    intermediate_size = reader.size("moe_intermediate_size")
    shared = reader.count("n_shared_experts", 1) * intermediate_size
    return MoeConfig(router, intermediate_size, shared, sparse_layers)


def _first_dense(reader: ConfigReader) -> frozenset[int]:
    """The layers from `first_k_dense_replace` on."""
    return frozenset(range(reader.count("first_k_dense_replace", 1), reader.size("num_hidden_layers")))


def _layer_types(reader: ConfigReader) -> frozenset[int]:
    """The layers that `mlp_layer_types` calls sparse; without it those from `first_k_dense_replace` on."""
    types = reader.config.get("mlp_layer_types")
    if types is None:
        return _first_dense(reader)
    num_layers = reader.size("num_hidden_layers")
    if not isinstance(types, list) or len(types) != num_layers or any(t not in ("dense", "sparse") for t in types):
        raise CheckpointError(
            f"config.json: mlp_layer_types = {types!r}, but it must name dense or sparse for each of {num_layers} "
            "layers"
        )
    return frozenset(i for i, kind in enumerate(types) if kind == "sparse")


def _mtp_layers(reader: ConfigReader, default: int) -> int:
    """`num_nextn_predict_layers`, which transformers 5 also calls num_mtp_layers."""
    name = "num_mtp_layers" if reader.config.get("num_nextn_predict_layers") is None else "num_nextn_predict_layers"
    return reader.count(name, default)
