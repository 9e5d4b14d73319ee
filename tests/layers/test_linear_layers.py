"""Linear layers, the unquantized method and the packing of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.distributed.single import SingleProcess
from core.hardware.cpu import CpuBackend
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import WeightError
from core.interfaces.quant import LinearMethod, LinearShape
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.linear import MergedLinear, QkvLinear, ReplicatedLinear
from core.layers.mlp import GatedMlp
from core.layers.module import NO_EXPERT, Layer
from core.layers.moe import TorchNativeMoe
from core.layers.norm import RmsNorm
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.ops.table import build_ops


def context(dtype: torch.dtype = torch.float32, **changes: Any) -> BuildContext:
    plugin = PluginContext()
    base = BuildContext(
        dtype=dtype,
        device=torch.device("cpu"),
        ops=REFERENCES,
        quant=Unquantized(None, plugin),
        moe=TorchNativeMoe(plugin),
        tp=SingleProcess(),
        max_tokens=8,
        context_length=8,
    )
    return base.replace(**changes)


def test_unquantized_takes_checkpoints_without_a_format() -> None:
    assert Unquantized.recognises(None)
    assert not Unquantized.recognises({"quant_method": "fp8"})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_qkv_is_three_projections(kv: int, groups: int, dim: int, hidden: int, bias: bool, tokens: int) -> None:
    layer = QkvLinear("qkv", hidden, kv * groups, kv, dim, context(), bias=bias, v_head_dim=dim + 1)
    rows = {"q": kv * groups * dim, "k": kv * dim, "v": kv * (dim + 1)}
    x = torch.randn(tokens, hidden)
    wanted = []
    for part, n in rows.items():
        weight, offset = torch.randn(n, hidden), torch.randn(n)
        layer.load("weight", part, weight)
        if bias:
            layer.load("bias", part, offset)
        wanted.append(x @ weight.T + (offset if bias else 0))
    layer.finish()
    assert layer.expected() == {(s, p, NO_EXPERT) for s in (("weight", "bias") if bias else ("weight",)) for p in rows}
    torch.testing.assert_close(layer(x), torch.cat(wanted, -1), atol=1e-5, rtol=1e-4)


def test_wrong_tensors_are_refused() -> None:
    layer = MergedLinear("mlp.gate_up", 4, {"gate": 6, "up": 6}, context(), bias=False)
    with pytest.raises(WeightError, match=r"shape \[6, 5\], expected \[6, 4\]"):
        layer.load("weight", "gate", torch.zeros(6, 5))
    with pytest.raises(WeightError, match="dtype int8"):
        layer.load("weight", "gate", torch.zeros(6, 4, dtype=torch.int8))
    for suffix, part in (("weight", "q"), ("bias", "gate"), ("weight_scale", "gate")):
        with pytest.raises(WeightError, match=f"mlp.gate_up has no {suffix} for part '{part}'"):
            layer.load(suffix, part, torch.zeros(6, 4))
    with pytest.raises(WeightError, match="has no experts"):
        layer.load("weight", "gate", torch.zeros(6, 4), 0)


def test_packing_replaces_the_plain_weight() -> None:
    class Packed:
        def __init__(self, weight: torch.Tensor) -> None:
            self.copy = weight.clone()

    ops = {
        **REFERENCES,
        "pack_linear_weight": Packed,
        "linear": lambda x, packed, bias: x @ packed.copy.T,
    }
    ctx = context(ops=ops)
    embedding = VocabEmbedding("embed", 5, 3, ctx)
    head = LmHead("head", 5, 3, ctx, tied=embedding)
    plain = ReplicatedLinear("l", 3, 2, ctx, bias=False)
    plain.load("weight", "", torch.ones(2, 3))
    weight = torch.randn(5, 3)
    embedding.load("weight", "", weight)
    for module in (embedding, head, plain):
        module.finish()
    assert [name for name, _ in plain.named_parameters()] == []  # no second copy is kept
    assert torch.equal(plain(torch.ones(1, 3)), torch.full((1, 2), 3.0))
    assert torch.equal(embedding(torch.tensor([4])), weight[4:])  # the embedding still needs its rows
    torch.testing.assert_close(head(weight), weight @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 40])
def test_cpu_operations_give_the_references_result(dtype: torch.dtype, tokens: int) -> None:
    results = []
    x = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    for ops in (REFERENCES, build_ops(CpuBackend(PluginContext()).ops())):
        mlp = GatedMlp("mlp", 32, 48, context(dtype, ops=ops), bias=True)
        generator = torch.Generator().manual_seed(2)
        for layer in (mlp.gate_up_proj, mlp.down_proj):
            for part in layer.shape.parts:
                full = (part.full_out_features, layer.shape.full_in_features)
                layer.load("weight", part.name, torch.randn(full, generator=generator) / 6)
                layer.load("bias", part.name, torch.randn(full[:1], generator=generator))
            layer.finish()
        results.append(mlp(x))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)


def test_a_method_finds_the_operations_and_owns_the_parameters() -> None:
    """What a quantization plugin relies on."""

    class Doubled(LinearMethod):
        def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
            module.register_parameter("packed", nn.Parameter(torch.empty(shape.out_features), requires_grad=False))

        def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
            return {("qweight", part.name) for part in shape.parts}

        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            module.packed.data.copy_(tensor)

        def finish(self, module: Any, shape: LinearShape) -> None:
            module.found = module.ops["linear"]

        def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
            return 2 * x * module.packed

    class Quant(Unquantized):
        def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
            return Doubled() if path == "a.b" else super().linear(path, sources)

    ctx = context(quant=Quant(None, PluginContext()))
    layer = ReplicatedLinear("a.b", 3, 3, ctx, bias=False)
    assert layer.expected() == {("qweight", "", NO_EXPERT)}
    layer.load("qweight", "", torch.tensor([1.0, 2.0, 3.0]))
    layer.finish()
    assert layer.found is REFERENCES["linear"]
    assert layer(torch.ones(1, 3)).tolist() == [[2.0, 4.0, 6.0]]
    assert ReplicatedLinear("a.c", 3, 3, ctx, bias=False).expected() == {("weight", "", NO_EXPERT)}


def test_norm_adds_before_it_norms() -> None:
    norm = RmsNorm("n", 4, 1e-6, context())
    norm.load("weight", "", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x, residual = torch.randn(2, 4), torch.randn(2, 4)
    y, total = norm.add(x, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, norm(total))
    wanted = total / (total.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(y, wanted)


def test_layer_sees_a_replaced_submodule() -> None:
    class Outer(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner: nn.Module = nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    outer = Outer()
    assert outer(3) == 3
    outer.inner = nn.Flatten(0)
    assert outer(torch.ones(2, 2)).shape == (4,)
    assert [name for name, _ in outer.named_children()] == ["inner"]
