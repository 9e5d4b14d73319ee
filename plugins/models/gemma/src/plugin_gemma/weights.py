"""Which checkpoint module fills which module."""

from __future__ import annotations

from core.interfaces.model import ModuleRule, WeightRules

_LAYER = "model.layers.{layer}"

_DECODER = (
    ModuleRule("model.embed_tokens", "embed_tokens"),
    ModuleRule("model.norm", "norm"),
    ModuleRule(f"{_LAYER}.input_layernorm", "layers.{layer}.input_layernorm"),
    # Core names its four norms after the block that they stand around.
    ModuleRule(f"{_LAYER}.post_attention_layernorm", "layers.{layer}.post_self_attn_layernorm"),
    ModuleRule(f"{_LAYER}.pre_feedforward_layernorm", "layers.{layer}.post_attention_layernorm"),
    ModuleRule(f"{_LAYER}.post_feedforward_layernorm", "layers.{layer}.post_mlp_layernorm"),
    ModuleRule(f"{_LAYER}.self_attn.q_proj", "layers.{layer}.self_attn.qkv_proj", "q"),
    ModuleRule(f"{_LAYER}.self_attn.k_proj", "layers.{layer}.self_attn.qkv_proj", "k"),
    ModuleRule(f"{_LAYER}.self_attn.v_proj", "layers.{layer}.self_attn.qkv_proj", "v"),
    ModuleRule(f"{_LAYER}.self_attn.o_proj", "layers.{layer}.self_attn.o_proj"),
    ModuleRule(f"{_LAYER}.mlp.gate_proj", "layers.{layer}.mlp.gate_up_proj", "gate"),
    ModuleRule(f"{_LAYER}.mlp.up_proj", "layers.{layer}.mlp.gate_up_proj", "up"),
    ModuleRule(f"{_LAYER}.mlp.down_proj", "layers.{layer}.mlp.down_proj"),
)
_IGNORED = {r"(.*\.)?rotary_emb\.inv_freq": "rotary frequencies are computed from config.json"}

GEMMA2_RULES = WeightRules((*_DECODER, ModuleRule("lm_head", "lm_head")), _IGNORED)
GEMMA2_CLASSIFIER_RULES = WeightRules((*_DECODER, ModuleRule("score", "score")), _IGNORED)
