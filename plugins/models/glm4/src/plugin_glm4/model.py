"""The GLM-4 decoders, put together from core's layers."""

from __future__ import annotations

from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.spec import ModelSpec
from core.layers.attention import SelfAttention
from core.layers.decoder import CausalDecoder, DecoderLayer, SandwichDecoderLayer
from core.layers.mla import MlaAttention
from core.layers.mlp import GatedMlp
from core.layers.moe import MoeLayer
from core.layers.rope import Rope
from plugin_glm4.config import Glm4Config


def build_model(spec: ModelSpec, ctx: BuildContext) -> CausalDecoder:
    """Decoder with grouped-query or latent attention, and a gated MLP or experts in each layer."""
    config = spec.arch
    assert isinstance(config, Glm4Config)
    rope = Rope(config.rope, ctx, interleaved=config.rope_interleaved)
    hidden_size = spec.hidden_size

    def make_attention(index: int, path: str) -> nn.Module:
        layer = spec.layers[index]
        if config.latent is not None:
            # The norms of query and latent have their own epsilon, whatever rms_norm_eps says.
            return ctx.layer(MlaAttention)(
                path,
                index,
                layer,
                hidden_size,
                rope,
                ctx,
                q_lora_rank=config.latent.q_lora_rank,
                norm_eps=1e-6,
                bias=config.attention_bias,
            )
        return ctx.layer(SelfAttention)(
            path,
            index,
            layer,
            hidden_size,
            rope,
            ctx,
            qkv_bias=config.attention_bias,
            qk_norm_eps=config.norm_eps if config.qk_norm else None,
        )

    def make_mlp(index: int, path: str) -> nn.Module:
        moe, activation = config.moe, config.activation
        if moe is None or index not in moe.sparse_layers:
            return ctx.layer(GatedMlp)(
                path, hidden_size, config.intermediate_size, ctx, activation=activation, stacked=config.sandwich
            )
        return ctx.layer(MoeLayer)(
            path,
            hidden_size,
            moe.intermediate_size,
            moe.router,
            ctx,
            shared_intermediate_size=moe.shared_intermediate_size,
            activation=activation,
        )

    layer_class = SandwichDecoderLayer if config.sandwich else DecoderLayer

    def make_layer(index: int, path: str) -> DecoderLayer:
        attention, mlp = make_attention(index, f"{path}.self_attn"), make_mlp(index, f"{path}.mlp")
        return ctx.layer(layer_class)(path, attention, mlp, hidden_size, config.norm_eps, ctx)

    return ctx.layer(CausalDecoder)(spec, ctx, config.norm_eps, make_layer)
