"""Which checkpoint module fills which module of ours."""

from __future__ import annotations

from core.interfaces.model import ModuleRule, WeightRules

_BLOCK = {
    "ln_1": "ln_1",
    "attn.c_attn": "c_attn",
    "attn.c_proj": "c_proj",
    "ln_2": "ln_2",
    "mlp.c_fc": "c_fc",
    "mlp.c_proj": "c_out",
}


def _decoder(prefix: str) -> tuple[ModuleRule, ...]:
    """Rules speak of modules, never of tensors: "weight", "bias" and what quantized formats add belong to the layer."""
    blocks = (ModuleRule(f"{prefix}h.{{layer}}.{theirs}", f"h.{{layer}}.{ours}") for theirs, ours in _BLOCK.items())
    return (
        ModuleRule(f"{prefix}wte", "wte"),
        ModuleRule(f"{prefix}wpe", "wpe"),
        *blocks,
        ModuleRule(f"{prefix}ln_f", "ln_f"),
    )


# Published checkpoints come both ways: the bare decoder's names, and with its name in front.
RULES = WeightRules(
    rules=(*_decoder("transformer."), *_decoder(""), ModuleRule("lm_head", "lm_head")),
    ignored={r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias": "the causal mask, which attention knows by itself"},
)
