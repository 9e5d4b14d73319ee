"""Latent attention and grouped routing against transformers' DeepSeek-V3 modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3MoE,
    DeepseekV3RotaryEmbedding,
)

from core.interfaces.build import BuildContext
from core.interfaces.spec import AttentionSpec
from core.layers.config import group_layers
from core.layers.mla import LatentUpProjection, MlaAttention
from core.layers.module import WeightModule
from core.layers.moe import MoeLayer
from core.layers.rope import Rope
from core.layers.rope_config import latent_scale, rope_spec
from core.layers.router_config import RouterSpec
from core.layers.unquantized import UnquantizedLinear

from .test_tensor_parallel import context, on_ranks
from .worlds import one_sequence

HIDDEN, LENGTH = 24, 11
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
}
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "max_position_embeddings": 128,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}


def random_model(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dtype.is_floating_point and "inv_freq" not in name:
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.3 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
            tensor.data.copy_(noise * scale + (1.0 if "norm" in name else 0.0))
    return module.eval()


def load(module: Any, tensor: torch.Tensor, part: str = "", suffix: str = "weight") -> None:
    assert isinstance(module, WeightModule)
    module.load(suffix, part, tensor.detach())


def attention_layer(config: Any, hf: Any, ctx: BuildContext) -> tuple[MlaAttention, Any]:
    rope = rope_spec(config.to_dict(), config.qk_rope_head_dim)
    head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    rule = AttentionSpec(
        config.num_attention_heads, 1, head_dim, latent_scale(rope, head_dim), config.v_head_dim,
        latent_dim=config.kv_lora_rank, rope_dim=config.qk_rope_head_dim,
    )  # fmt: skip
    (spec,), (group,) = group_layers([rule])
    layer = MlaAttention(
        "attn", 0, spec, HIDDEN, Rope(rope, ctx, interleaved=config.rope_interleave), ctx,
        q_lora_rank=config.q_lora_rank, bias=config.attention_bias,
    )  # fmt: skip
    if config.q_lora_rank is None:
        load(layer.q_proj, hf.q_proj.weight)
        load(layer.kv_a_proj, hf.kv_a_proj_with_mqa.weight)
    else:
        for part, source in (("q_a", hf.q_a_proj), ("kv_a", hf.kv_a_proj_with_mqa)):
            load(layer.qkv_a_proj, source.weight, part)
            if config.attention_bias:
                load(layer.qkv_a_proj, source.bias, part, "bias")
        load(layer.q_a_layernorm, hf.q_a_layernorm.weight)
        load(layer.q_b_proj, hf.q_b_proj.weight)
    load(layer.kv_a_layernorm, hf.kv_a_layernorm.weight)
    load(layer.kv_b_proj, hf.kv_b_proj.weight)
    load(layer.o_proj, hf.o_proj.weight)
    if config.attention_bias:
        load(layer.o_proj, hf.o_proj.bias, "", "bias")
    for module in layer.modules():
        if isinstance(module, WeightModule):
            module.finish()
    return layer, one_sequence(spec, group, LENGTH, ranks=ctx.tp.size)


def hf_attention(**changes: Any) -> tuple[Any, Any, torch.Tensor, torch.Tensor]:
    """Config, module, input and output."""
    config = DeepseekV3Config(**{**SIZES, **changes})
    config._attn_implementation = "eager"
    hf: Any = random_model(DeepseekV3Attention(config, 0))
    x = torch.randn(1, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(1))
    tables = DeepseekV3RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)[None, None]
    with torch.inference_mode():
        wanted = hf(x, tables, mask)[0][0]
    return config, hf, x[0], wanted


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None},
        {"attention_bias": True},
        {"rope_interleave": False},
        {"rope_scaling": YARN},
        {"rope_scaling": {**YARN, "mscale_all_dim": 0.0}},
    ],
)
@torch.inference_mode()
def test_attention(changes: dict[str, Any]) -> None:
    config, hf, x, wanted = hf_attention(**changes)
    layer, batch = attention_layer(config, hf, context().replace(context_length=LENGTH))
    torch.testing.assert_close(layer(x, batch), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("q_lora_rank", [None, 10])
def test_attention_of_all_ranks(size: int, q_lora_rank: int | None) -> None:
    config, hf, x, wanted = hf_attention(q_lora_rank=q_lora_rank, attention_bias=q_lora_rank is not None)

    def work(ctx: BuildContext) -> torch.Tensor:
        with torch.inference_mode():
            layer, batch = attention_layer(config, hf, ctx.replace(context_length=LENGTH))
            assert layer.kv_b_proj.weights.key.shape == (4 // size, 6, 12)
            (backend,) = batch.attention
            assert backend.config.group.elements_per_token(size) == 16  # a latent is whole on every rank
            return layer(x, batch)

    for part in on_ranks(size, work):
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-5)


class Doubling(UnquantizedLinear):
    """Stands for a quantized format: what it stores is not what it multiplies with."""

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().apply(module, x)

    def dense(self, module: Any, *args: Any) -> torch.Tensor:
        return super(UnquantizedLinear, self).dense(module, *args)


@pytest.mark.parametrize("method", [UnquantizedLinear, Doubling])
def test_the_up_projection_keeps_only_what_backends_take(method: type[UnquantizedLinear]) -> None:
    ctx = context()
    ctx.quant.linear = lambda path, sources: method()  # type: ignore[method-assign]
    layer = LatentUpProjection("up", 5, 3, 2, 4, ctx)
    weight = torch.randn(18, 5)
    layer.load("weight", "", weight)
    layer.finish()
    rows = weight.view(3, 6, 5) * (2 if method is Doubling else 1)
    torch.testing.assert_close(layer.weights.key, rows[:, :2])
    torch.testing.assert_close(layer.weights.value, rows[:, 2:])
    assert not list(layer.parameters())
    assert not [name for name, value in vars(layer).items() if isinstance(value, torch.Tensor)]


def moe_layer(config: Any, hf: Any, ctx: BuildContext) -> MoeLayer:
    router = RouterSpec(
        config.n_routed_experts, config.num_experts_per_tok, "sigmoid", config.norm_topk_prob,
        config.routed_scaling_factor, True, config.n_group, config.topk_group, float32=True,
    )  # fmt: skip
    inter = config.moe_intermediate_size
    layer = MoeLayer("mlp", HIDDEN, inter, router, ctx, shared_intermediate_size=inter * config.n_shared_experts)
    load(layer.gate, hf.gate.weight)
    load(layer.gate, hf.gate.e_score_correction_bias, suffix="e_score_correction_bias")
    if isinstance(hf.experts, nn.ModuleList):  # transformers 4
        for number, expert in enumerate(hf.experts):
            for part in ("gate", "up", "down"):
                layer.experts.load("weight", part, getattr(expert, f"{part}_proj").weight.detach(), number)
    else:
        load(layer.experts, hf.experts.gate_up_proj, suffix="gate_up_proj")
        load(layer.experts, hf.experts.down_proj, suffix="down_proj")
    shared = layer.shared_experts
    assert shared is not None
    load(shared.gate_up_proj, hf.shared_experts.gate_proj.weight, "gate")
    load(shared.gate_up_proj, hf.shared_experts.up_proj.weight, "up")
    load(shared.down_proj, hf.shared_experts.down_proj.weight)
    for module in layer.modules():
        if isinstance(module, WeightModule):
            module.finish()
    return layer


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"n_group": 1, "topk_group": 1}, {"norm_topk_prob": False}, {"n_group": 6, "topk_group": 3}]
)
def test_experts(size: int, changes: dict[str, Any]) -> None:
    config = DeepseekV3Config(**{**SIZES, **changes})
    hf: Any = random_model(DeepseekV3MoE(config))
    x = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = hf(x)[0]

    def work(ctx: BuildContext) -> torch.Tensor:
        with torch.inference_mode():
            return moe_layer(config, hf, ctx)(x[0])

    for part in on_ranks(size, work):
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-5)


def test_the_router_stays_in_float32() -> None:
    config = DeepseekV3Config(**SIZES)
    hf: Any = random_model(DeepseekV3MoE(config))
    layer = moe_layer(config, hf, context().replace(dtype=torch.bfloat16))
    assert {p.dtype for p in layer.gate.parameters()} == {torch.float32}
    x = torch.randn(9, HIDDEN).bfloat16()
    made = hf.gate(x)  # transformers 4: ids, weights; 5: logits, weights, ids
    (ids,) = (part for part in made if not part.dtype.is_floating_point)
    weights = [part for part in made if part.dtype.is_floating_point][-1]
    ours, chosen = layer.route(layer.gate(x))
    for row in range(9):
        got = dict(zip(chosen[row].tolist(), ours[row].tolist(), strict=True))
        assert got == pytest.approx(dict(zip(ids[row].tolist(), weights[row].tolist(), strict=True)), rel=1e-5)
    assert layer(x).dtype == torch.bfloat16
