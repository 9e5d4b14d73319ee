"""The Qwen decoders, put together from core's layers."""

from __future__ import annotations

from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.spec import ModelSpec
from core.layers.attention import SelfAttention
from core.layers.decoder import CausalDecoder, DecoderLayer
from core.layers.mlp import GatedMlp
from core.layers.moe import MoeLayer
from core.layers.rope import Rope
from core.layers.router_config import RouterSpec
from plugin_qwen.config import QwenConfig


def build_model(spec: ModelSpec, ctx: BuildContext) -> CausalDecoder:
    """Pre-norm decoder with rotary grouped-query attention, and a gated MLP or experts in each layer."""
    config = spec.arch
    assert isinstance(config, QwenConfig)
    rope = Rope(config.rope, ctx)
    hidden_size = spec.hidden_size

    def make_mlp(index: int, path: str) -> nn.Module:
        moe = config.moe
        if moe is None or index not in moe.sparse_layers:
            return ctx.layer(GatedMlp)(path, hidden_size, config.intermediate_size, ctx, activation=config.activation)
        router = RouterSpec(moe.num_experts, moe.top_k, renormalize=moe.renormalize)
        return ctx.layer(MoeLayer)(path, hidden_size, moe.intermediate_size, router, ctx)

    def make_layer(index: int, path: str) -> DecoderLayer:
        attention = ctx.layer(SelfAttention)(
            f"{path}.self_attn",
            index,
            spec.layers[index],
            hidden_size,
            rope,
            ctx,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            qk_norm_eps=config.norm_eps if config.qk_norm else None,
        )
        return ctx.layer(DecoderLayer)(
            path, attention, make_mlp(index, f"{path}.mlp"), hidden_size, config.norm_eps, ctx
        )

    return ctx.layer(CausalDecoder)(spec, ctx, config.norm_eps, make_layer)
