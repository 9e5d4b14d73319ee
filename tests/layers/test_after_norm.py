"""Layers that take the norm before them and the activation into their products give what the parts give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionConfig
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, StateKind
from core.layers.attention import SelfAttention
from core.layers.decoder import DecoderLayer, SandwichDecoderLayer
from core.layers.linear import MergedLinear
from core.layers.mlp import GatedMlp
from core.layers.module import WeightModule, after_norm, entry_after_norm
from core.layers.moe import MoeLayer, TorchNativeMoe
from core.layers.norm import RmsNorm
from core.layers.rope import Rope
from core.layers.rope_config import RopeSpec
from core.layers.router_config import RouterSpec
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from tests.layers.test_tensor_parallel import Rank

HIDDEN, HEADS, KV_HEADS, DIM, TOKENS = 32, 4, 2, 8, 5
CPU = torch.device("cpu")


@dataclass
class Device:
    """Operations of a device that has the fused ones: the references under other identities, counted."""

    names: tuple[str, ...] = ("fused_linear", "qk_norm_rope", "qk_norm_rope_store")
    calls: Counter[str] = field(default_factory=Counter)

    def ops(self) -> dict[str, Callable[..., Any]]:
        return {**REFERENCES, **{name: self._counted(name) for name in self.names}}

    def _counted(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return REFERENCES[name](*args, **kwargs)

        return call


def context(ops: Any = REFERENCES, layers: dict[str, type] | None = None) -> BuildContext:
    plugin = PluginContext()
    return BuildContext(
        dtype=torch.float32, device=CPU, ops=ops, quant=Unquantized(None, plugin), moe=TorchNativeMoe(plugin),
        tp=Rank(0, 1, None, [None]), max_tokens=16, context_length=16, layers=layers or {},  # type: ignore[arg-type]
    )  # fmt: skip


def filled(module: nn.Module) -> Any:
    """The same random weights for modules of the same shapes, loaded and finished."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    for part in module.modules():
        if isinstance(part, WeightModule):
            part.finish()
    return module


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SPEC = LayerSpec(AttentionSpec(HEADS, KV_HEADS, DIM, DIM**-0.5), 0)
GROUP = CacheGroupSpec("full", StateKind.FULL, (0,), KV_HEADS, DIM, DIM, None)


class Backend(TorchNativeAttention):
    """Notes whether it got the keys."""

    def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
        self.got_keys = k is not None
        return super().run(q, k, v, layer, kv, sinks)


def batch() -> tuple[ForwardBatch, Backend]:
    config = AttentionConfig(GROUP, {0: SPEC.attention}, HEADS, KV_HEADS, 8, 3, torch.float32, CPU, 2, 16, 16)  # type: ignore[dict-item]
    backend = Backend(config, PluginContext())
    kv = backend.allocate()
    table = np.array([[1, 2]], np.int32)
    slots = torch.arange(8, 8 + TOKENS)
    one = np.array([TOKENS], np.int32)
    ends = np.array([0, TOKENS], np.int32)
    layout = BatchLayout(8, 0, one, one, ends, table, slots)
    rows = torch.arange(TOKENS)
    made = ForwardBatch(rows, rows, rows, (layout,), (backend,), (kv[0],))
    made.plan_attention()
    return made, backend


def attention(ctx: BuildContext, eps: float | None = None) -> SelfAttention:
    return filled(SelfAttention("attn", 0, SPEC, HIDDEN, Rope(RopeSpec(DIM, 10_000.0, 16), ctx), ctx, qk_norm_eps=eps))


def layer(ctx: BuildContext, kind: type[DecoderLayer], mlp: nn.Module) -> DecoderLayer:
    return filled(kind("layer", attention(ctx, 1e-6), mlp, HIDDEN, 1e-5, ctx, norm_offset=1.0))


@pytest.mark.parametrize("kind", [DecoderLayer, SandwichDecoderLayer])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("first", [True, False])
def test_a_layer_of_fused_products(kind: type[DecoderLayer], activation: str, first: bool) -> None:
    device = Device()
    x, residual = random(TOKENS, HIDDEN, seed=2), None if first else random(TOKENS, HIDDEN, seed=3)
    results = []
    for ctx in (context(), context(device.ops())):
        mlp = GatedMlp("mlp", HIDDEN, 48, ctx, activation=activation)
        made, backend = batch()
        results.append(layer(ctx, kind, mlp)(x, residual, made))
    torch.testing.assert_close(results[1], results[0])
    assert device.calls["fused_linear"] == 2, "attention's and the MLP's first products"
    assert device.calls["qk_norm_rope_store"] == 1
    assert not backend.got_keys


def test_without_a_fused_store_attention_gets_the_keys() -> None:
    made, backend = batch()
    attention(context(Device(("qk_norm_rope",)).ops()))(random(TOKENS, HIDDEN, seed=2), made)
    assert backend.got_keys


def test_a_backend_that_stores_itself_gets_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    made, backend = batch()
    monkeypatch.setattr(Backend, "token_rows", lambda self, kv: None)
    attention(context(device.ops()))(random(TOKENS, HIDDEN, seed=2), made)
    assert backend.got_keys
    assert device.calls["qk_norm_rope"] == 1


@pytest.mark.parametrize("shared", [0, 24])
def test_experts_get_the_normed_rows(shared: int) -> None:
    device = Device()
    x, residual = random(TOKENS, HIDDEN, seed=2), random(TOKENS, HIDDEN, seed=3)
    results = []
    for ctx in (context(), context(device.ops())):
        router = RouterSpec(num_experts=4, top_k=2)
        moe = filled(MoeLayer("moe", HIDDEN, 16, router, ctx, shared_intermediate_size=shared))
        norm = filled(RmsNorm("norm", HIDDEN, 1e-5, ctx))
        results.append(entry_after_norm(moe)(norm, x, residual))
    torch.testing.assert_close(results[1], results[0])
    assert device.calls["fused_linear"] == (2 if shared else 1)


class Twice(GatedMlp):
    """A vendor's MLP, of which only `forward` is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_subclass_with_a_forward_of_its_own_is_not_passed_by() -> None:
    ctx = context(Device().ops())
    norm = filled(RmsNorm("norm", HIDDEN, 1e-5, ctx))
    x = random(TOKENS, HIDDEN, seed=2)
    mine, cores = filled(Twice("mlp", HIDDEN, 48, ctx)), filled(GatedMlp("mlp", HIDDEN, 48, ctx))
    y, total = entry_after_norm(mine)(norm, x, None)
    torch.testing.assert_close(y, 2 * entry_after_norm(cores)(norm, x, None)[0])
    assert total is x


def test_any_module_can_follow_a_norm() -> None:
    norm = filled(RmsNorm("norm", HIDDEN, 1e-5, context()))
    x, residual = random(TOKENS, HIDDEN, seed=2), random(TOKENS, HIDDEN, seed=3)
    module = nn.Linear(HIDDEN, HIDDEN)
    y, total = entry_after_norm(module)(norm, x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, module(norm(x + residual)))
    torch.testing.assert_close(after_norm(module, norm, total, None)[0], y)


def test_a_product_is_fused_only_where_the_device_has_it() -> None:
    for ops, there in ((REFERENCES, False), (Device().ops(), True)):
        ctx = context(ops)
        assert (filled(MergedLinear("p", HIDDEN, {"a": 8}, ctx, bias=True)).fused is not None) == there
