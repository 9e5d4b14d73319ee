"""Which checkpoint module fills which module."""

from __future__ import annotations

from core.interfaces.model import ModuleRule, WeightRules
from core.interfaces.spec import ModelSpec
from plugin_glm4.config import Glm4Config

_LAYER = "model.layers.{layer}"
_EXPERT = f"{_LAYER}.mlp.experts.{{expert}}"


def _same(*names: str) -> tuple[ModuleRule, ...]:
    """Modules of a layer that are called alike on both sides."""
    return tuple(ModuleRule(f"{_LAYER}.{name}", f"layers.{{layer}}.{name}") for name in names)


def _part(source: str, target: str, part: str) -> ModuleRule:
    return ModuleRule(f"{_LAYER}.{source}", f"layers.{{layer}}.{target}", part)


_DECODER = (
    ModuleRule("model.embed_tokens", "embed_tokens"),
    ModuleRule("model.norm", "norm"),
    ModuleRule("lm_head", "lm_head"),
    *_same("input_layernorm", "post_attention_layernorm", "self_attn.o_proj", "mlp.down_proj"),
)
_QKV = tuple(_part(f"self_attn.{p}_proj", "self_attn.qkv_proj", p) for p in ("q", "k", "v"))
_QK_NORM = _same("self_attn.q_norm", "self_attn.k_norm")
# Dense GLM-4 stores gate and up as one tensor, gate first.
_SANDWICH = _same("post_self_attn_layernorm", "post_mlp_layernorm", "mlp.gate_up_proj")
_MLP = (
    _part("mlp.gate_proj", "mlp.gate_up_proj", "gate"),
    _part("mlp.up_proj", "mlp.gate_up_proj", "up"),
)
_MOE = (
    *_same("mlp.gate", "mlp.shared_experts.down_proj"),
    _part("mlp.shared_experts.gate_proj", "mlp.shared_experts.gate_up_proj", "gate"),
    _part("mlp.shared_experts.up_proj", "mlp.shared_experts.gate_up_proj", "up"),
    ModuleRule(f"{_EXPERT}.gate_proj", "layers.{layer}.mlp.experts", "gate"),
    ModuleRule(f"{_EXPERT}.up_proj", "layers.{layer}.mlp.experts", "up"),
    ModuleRule(f"{_EXPERT}.down_proj", "layers.{layer}.mlp.experts", "down"),
    # Stacked layout: mlp.experts.gate_up_proj and mlp.experts.down_proj, all experts in one tensor.
    *_same("mlp.experts"),
)
_LATENT = _same("self_attn.kv_a_layernorm", "self_attn.kv_b_proj")
_NARROW_QUERY = (
    _part("self_attn.q_a_proj", "self_attn.qkv_a_proj", "q_a"),
    _part("self_attn.kv_a_proj_with_mqa", "self_attn.qkv_a_proj", "kv_a"),
    *_same("self_attn.q_a_layernorm", "self_attn.q_b_proj"),
)
_WIDE_QUERY = (
    *_same("self_attn.q_proj"),
    ModuleRule(f"{_LAYER}.self_attn.kv_a_proj_with_mqa", "layers.{layer}.self_attn.kv_a_proj"),
)

_MTP_MODULES = (
    r"eh_proj|enorm|hnorm|embed_tokens|shared_head\.norm|shared_head\.head"
    r"|input_layernorm|post_attention_layernorm|self_attn|mlp"
)
MTP_REASON = "multi-token prediction, kept for speculative decoding"


def weight_rules(spec: ModelSpec) -> WeightRules:
    """The rules of one checkpoint: which of them apply stands in its config.json."""
    config = spec.arch
    assert isinstance(config, Glm4Config)
    rules = _DECODER
    if config.latent is None:
        rules += _QKV
    else:
        rules += _LATENT + (_WIDE_QUERY if config.latent.q_lora_rank is None else _NARROW_QUERY)
    if config.qk_norm:
        rules += _QK_NORM
    rules += _SANDWICH if config.sandwich else _MLP
    if config.moe is not None:
        rules += _MOE
    ignored = {r"(.*\.)?rotary_emb\.inv_freq": "rotary frequencies are computed from config.json"}
    if config.num_mtp_layers:
        first = len(spec.layers)
        numbers = "|".join(str(first + i) for i in range(config.num_mtp_layers))
        ignored[rf"model\.layers\.({numbers})\.({_MTP_MODULES})\..+"] = MTP_REASON
    return WeightRules(rules, ignored)
