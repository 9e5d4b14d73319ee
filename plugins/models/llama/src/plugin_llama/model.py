"""The Llama decoder, put together from core's layers."""

from __future__ import annotations

from core.interfaces.build import BuildContext
from core.interfaces.spec import ModelSpec
from core.layers.attention import SelfAttention
from core.layers.decoder import CausalDecoder, DecoderLayer
from core.layers.mlp import GatedMlp
from core.layers.rope import Rope
from plugin_llama.config import LlamaConfig


def build_model(spec: ModelSpec, ctx: BuildContext) -> CausalDecoder:
    """Pre-norm decoder with rotary grouped-query attention and a gated MLP."""
    config = spec.arch
    assert isinstance(config, LlamaConfig)
    rope = Rope(config.rope, ctx)

    def make_layer(index: int, path: str) -> DecoderLayer:
        attention = ctx.layer(SelfAttention)(
            f"{path}.self_attn",
            index,
            spec.layers[index],
            spec.hidden_size,
            rope,
            ctx,
            qkv_bias=config.attention_bias,
            out_bias=config.attention_bias,
        )
        mlp = ctx.layer(GatedMlp)(
            f"{path}.mlp",
            spec.hidden_size,
            config.intermediate_size,
            ctx,
            bias=config.mlp_bias,
            activation=config.activation,
        )
        return ctx.layer(DecoderLayer)(path, attention, mlp, spec.hidden_size, config.norm_eps, ctx)

    return ctx.layer(CausalDecoder)(spec, ctx, config.norm_eps, make_layer)
