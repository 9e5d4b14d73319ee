"""Which checkpoint module fills which module."""

from __future__ import annotations

from dataclasses import replace

from core.interfaces.model import ModuleRule, WeightRules

_LAYER = "model.layers.{layer}"
_EXPERT = f"{_LAYER}.mlp.experts.{{expert}}"

_DECODER = (
    ModuleRule("model.embed_tokens", "embed_tokens"),
    ModuleRule("model.norm", "norm"),
    ModuleRule(f"{_LAYER}.input_layernorm", "layers.{layer}.input_layernorm"),
    ModuleRule(f"{_LAYER}.post_attention_layernorm", "layers.{layer}.post_attention_layernorm"),
    ModuleRule(f"{_LAYER}.self_attn.q_proj", "layers.{layer}.self_attn.qkv_proj", "q"),
    ModuleRule(f"{_LAYER}.self_attn.k_proj", "layers.{layer}.self_attn.qkv_proj", "k"),
    ModuleRule(f"{_LAYER}.self_attn.v_proj", "layers.{layer}.self_attn.qkv_proj", "v"),
    ModuleRule(f"{_LAYER}.self_attn.o_proj", "layers.{layer}.self_attn.o_proj"),
    ModuleRule(f"{_LAYER}.mlp.gate_proj", "layers.{layer}.mlp.gate_up_proj", "gate"),
    ModuleRule(f"{_LAYER}.mlp.up_proj", "layers.{layer}.mlp.gate_up_proj", "up"),
    ModuleRule(f"{_LAYER}.mlp.down_proj", "layers.{layer}.mlp.down_proj"),
)
_QK_NORM = (
    ModuleRule(f"{_LAYER}.self_attn.q_norm", "layers.{layer}.self_attn.q_norm"),
    ModuleRule(f"{_LAYER}.self_attn.k_norm", "layers.{layer}.self_attn.k_norm"),
)
_EXPERTS = (
    ModuleRule(f"{_LAYER}.mlp.gate", "layers.{layer}.mlp.gate"),
    ModuleRule(f"{_EXPERT}.gate_proj", "layers.{layer}.mlp.experts", "gate"),
    ModuleRule(f"{_EXPERT}.up_proj", "layers.{layer}.mlp.experts", "up"),
    ModuleRule(f"{_EXPERT}.down_proj", "layers.{layer}.mlp.experts", "down"),
    # Stacked layout: mlp.experts.gate_up_proj and mlp.experts.down_proj, all experts in one tensor.
    ModuleRule(f"{_LAYER}.mlp.experts", "layers.{layer}.mlp.experts"),
)
_IGNORED = {r"(.*\.)?rotary_emb\.inv_freq": "rotary frequencies are computed from config.json"}

_LM_HEAD = (ModuleRule("lm_head", "lm_head"),)
_SCORE = (ModuleRule("score", "score"),)


def _bare(rules: tuple[ModuleRule, ...]) -> WeightRules:
    """Of a decoder that is saved by itself."""
    return WeightRules(tuple(replace(rule, source=rule.source.removeprefix("model.")) for rule in rules), _IGNORED)


QWEN2_RULES = WeightRules(_DECODER + _LM_HEAD, _IGNORED)
QWEN2_CLASSIFIER_RULES = WeightRules(_DECODER + _SCORE, _IGNORED)
QWEN3_RULES = WeightRules(_DECODER + _LM_HEAD + _QK_NORM, _IGNORED)
QWEN2_HEADLESS_RULES = _bare(_DECODER)
QWEN3_HEADLESS_RULES = _bare(_DECODER + _QK_NORM)
QWEN3_CLASSIFIER_RULES = WeightRules(_DECODER + _SCORE + _QK_NORM, _IGNORED)
QWEN3_MOE_RULES = WeightRules(_DECODER + _LM_HEAD + _QK_NORM + _EXPERTS, _IGNORED)
