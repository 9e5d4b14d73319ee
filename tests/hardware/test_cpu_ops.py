"""The CPU's operations against the references' oracle: the same answers within the rounding of the dtype."""

from __future__ import annotations

import pytest
import torch

from core.hardware.cpu import CpuBackend
from core.hardware.cpu_ops import PackedLinear, cpu_ops
from core.interfaces.context import PluginContext
from core.ops.table import build_ops

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


def test_the_table_is_accepted() -> None:
    table = build_ops(CpuBackend(PluginContext(settings={"threads": 1})).ops())
    assert table["linear"].__module__ == "core.hardware.cpu_ops"


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 32, 70])
@pytest.mark.parametrize("shape", [(64, 96), (33, 7), (1, 5), (1024, 512)])
def test_linear(dtype: torch.dtype, bias: bool, num_tokens: int, shape: tuple[int, int]) -> None:
    ops = cpu_ops(1)
    x, weight = random(num_tokens, shape[1], dtype=dtype), random(*shape, dtype=dtype, seed=1)
    b = random(shape[0], dtype=dtype, seed=2) if bias else None
    want = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    packed = ops["pack_linear_weight"](weight)
    for given in (packed, weight):
        got = ops["linear"](x, given, b)
        assert got.dtype == dtype
        assert error(got, want) < TOLERANCE[dtype]


def test_packing_copies_the_weight() -> None:
    weight = random(16, 16, dtype=torch.bfloat16)
    x = random(5, 16, dtype=torch.bfloat16, seed=1)
    ops = cpu_ops(1)
    packed = ops["pack_linear_weight"](weight)
    if not isinstance(packed, PackedLinear):
        pytest.skip("this processor's matrix library packs no bfloat16 weights")
    want = ops["linear"](x, packed)
    weight.zero_()
    assert torch.equal(ops["linear"](x, packed), want)
    assert want.any()


def test_a_parameter_under_inference_mode() -> None:
    ops = cpu_ops(1)
    weight = torch.nn.Parameter(random(512, 512, dtype=torch.bfloat16))
    packed = ops["pack_linear_weight"](weight)
    with torch.inference_mode():
        x = random(3, 512, dtype=torch.bfloat16)
        assert error(ops["linear"](x, packed), x.double() @ weight.double().T) < 8e-3


def test_rows_and_columns_of_a_larger_tensor() -> None:
    ops = cpu_ops(1)
    weight = random(512, 512, dtype=torch.bfloat16)
    packed = ops["pack_linear_weight"](weight)
    whole = random(6, 1024, dtype=torch.bfloat16)
    for x in (whole[:, 512:], whole[::2, :512], whole[:1, 512:]):
        assert error(ops["linear"](x, packed), x.double() @ weight.double().T) < 8e-3


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(1, 64), (3, 4, 16), (300, 512), (150, 8, 128), (0, 8)])
def test_norms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ops = cpu_ops(1)
    x, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1)
    other = random(*shape, dtype=dtype, seed=2)
    kept = x.clone()

    def oracle(x: torch.Tensor) -> torch.Tensor:
        wide = x.double()
        return wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()

    for name in ("rms_norm", "qk_norm"):
        got = ops[name](x, weight, 1e-6)
        assert got.dtype == dtype
        assert error(got, oracle(x)) < TOLERANCE[dtype]
    got, residual = ops["add_rms_norm"](x, other, weight, 1e-6)
    assert torch.equal(residual, x + other)
    assert error(got, oracle(residual)) < TOLERANCE[dtype]
    assert torch.equal(x, kept)
