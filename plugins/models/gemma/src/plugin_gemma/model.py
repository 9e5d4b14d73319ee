"""The Gemma decoder, put together from core's layers."""

from __future__ import annotations

from core.interfaces.build import BuildContext
from core.interfaces.spec import ModelSpec
from core.layers.attention import SelfAttention
from core.layers.decoder import CausalDecoder, DecoderLayer, SandwichDecoderLayer
from core.layers.mlp import GatedMlp
from core.layers.rope import Rope
from plugin_gemma.config import GemmaConfig

NORM_OFFSET = 1.0  # checkpoints store a norm's weight less one


def build_model(spec: ModelSpec, ctx: BuildContext) -> CausalDecoder:
    """Norms before and after each block, rotary grouped-query attention, a gated MLP, an embedding scaled by
    sqrt(hidden_size)."""
    config = spec.arch
    assert isinstance(config, GemmaConfig)
    rope = Rope(config.rope, ctx)
    hidden_size = spec.hidden_size

    def make_layer(index: int, path: str) -> DecoderLayer:
        attention = ctx.layer(SelfAttention)(
            f"{path}.self_attn",
            index,
            spec.layers[index],
            hidden_size,
            rope,
            ctx,
            qkv_bias=config.attention_bias,
            out_bias=config.attention_bias,
        )
        mlp = ctx.layer(GatedMlp)(
            f"{path}.mlp", hidden_size, config.intermediate_size, ctx, activation=config.activation
        )
        return ctx.layer(SandwichDecoderLayer)(
            path, attention, mlp, hidden_size, config.norm_eps, ctx, norm_offset=NORM_OFFSET
        )

    return ctx.layer(CausalDecoder)(
        spec,
        ctx,
        config.norm_eps,
        make_layer,
        embed_scale=hidden_size**0.5,
        logit_softcap=config.logit_softcap,
        norm_offset=NORM_OFFSET,
    )
