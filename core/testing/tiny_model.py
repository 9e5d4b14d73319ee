"""TinyModel: a decoder of a few thousand random weights made of core's layers, for engines that run in tests.

Unlike the mock model it uses named operations, layer classes, experts, rotary embedding and grouped-query attention, so
whatever a device or a kernel package replaces takes part in its tokens.
"""

from __future__ import annotations

from typing import Any

from core.interfaces.build import BuildContext
from core.interfaces.model import CausalLM, HfConfig, ModelArch, ModuleRule, WeightRules
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, ModelSpec, StateKind
from core.layers.attention import SelfAttention
from core.layers.decoder import CausalDecoder, DecoderLayer
from core.layers.mlp import GatedMlp
from core.layers.moe import MoeLayer
from core.layers.rope import Rope
from core.layers.rope_config import RopeSpec
from core.layers.router_config import RouterSpec

_VOCAB, _HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INTERMEDIATE = 64, 32, 4, 2, 8, 48
_EXPERTS, _TOP_K, _LAYERS, _CONTEXT = 4, 2, 2, 128
_EPS = 1e-5


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A config.json that TinyModel.spec reads."""
    return {
        "architectures": ["TinyForCausalLM"],
        "vocab_size": _VOCAB,
        "max_position_embeddings": _CONTEXT,
        "torch_dtype": "float32",
        **changes,
    }


class TinyModel(ModelArch):
    """Architecture name "TinyForCausalLM": two layers, a gated MLP in the first and experts in the second."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        rule = AttentionSpec(_HEADS, _KV_HEADS, _HEAD_DIM, scale=_HEAD_DIM**-0.5)
        group = CacheGroupSpec("full", StateKind.FULL, tuple(range(_LAYERS)), _KV_HEADS, _HEAD_DIM, _HEAD_DIM)
        return ModelSpec(
            architecture="TinyForCausalLM",
            vocab_size=int(hf_config["vocab_size"]),
            hidden_size=_HIDDEN,
            layers=(LayerSpec(rule),) * _LAYERS,
            cache_groups=(group,),
            context_length=int(hf_config["max_position_embeddings"]),
            dtype="float32",
            num_experts=_EXPERTS,
        )

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        rope = Rope(RopeSpec(_HEAD_DIM, 10_000.0, spec.context_length), ctx)

        def make_layer(index: int, path: str) -> DecoderLayer:
            attention = ctx.layer(SelfAttention)(
                f"{path}.self_attn", index, spec.layers[index], _HIDDEN, rope, ctx, qk_norm_eps=_EPS
            )
            if index:
                router = RouterSpec(_EXPERTS, _TOP_K, renormalize=True)
                mlp: Any = ctx.layer(MoeLayer)(f"{path}.mlp", _HIDDEN, _INTERMEDIATE, router, ctx)
            else:
                mlp = ctx.layer(GatedMlp)(f"{path}.mlp", _HIDDEN, _INTERMEDIATE, ctx)
            return ctx.layer(DecoderLayer)(path, attention, mlp, _HIDDEN, _EPS, ctx)

        return ctx.layer(CausalDecoder)(spec, ctx, _EPS, make_layer)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        at = "layers.{layer}"
        attention = [
            ModuleRule(f"{at}.self_attn.{part}_proj", f"{at}.self_attn.qkv_proj", part) for part in ("q", "k", "v")
        ]
        mlp = [ModuleRule(f"{at}.mlp.{part}_proj", f"{at}.mlp.gate_up_proj", part) for part in ("gate", "up")]
        experts = [
            ModuleRule(f"{at}.mlp.experts.{{expert}}.{part}_proj", f"{at}.mlp.experts", part)
            for part in ("gate", "up", "down")
        ]
        same = [
            "embed_tokens", "norm", "lm_head", f"{at}.input_layernorm", f"{at}.post_attention_layernorm",
            f"{at}.self_attn.o_proj", f"{at}.self_attn.q_norm", f"{at}.self_attn.k_norm", f"{at}.mlp.down_proj",
            f"{at}.mlp.gate",
        ]  # fmt: skip
        return WeightRules((*attention, *mlp, *experts, *(ModuleRule(name, name) for name in same)), {})
