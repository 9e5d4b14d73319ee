"""The operations in C against float64, and what they leave to the references."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.interfaces.context import PluginContext
from core.ops import reference
from core.ops.table import build_ops
from plugin_cpu_native.library import Kernels

Ops = Mapping[str, Callable[..., Any]]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)


@pytest.fixture(scope="module")
def ops(library: Kernels) -> Ops:
    from plugin_cpu_native.ops import CpuNativeOps

    return build_ops(CpuNativeOps(PluginContext()).ops())


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 64), (1, 1), (2, 37), (5, 4, 32), (3, 2, 21), (0, 16), (300, 257), (16,)])
def test_rms_norm(ops: Ops, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = random(*shape, dtype=dtype) * 3, random(shape[-1], dtype=dtype, seed=1)
    for name in ("rms_norm", "qk_norm"):
        got = ops[name](x, weight, 1e-5)
        assert got.dtype == dtype
        assert error(got, normed(x, weight, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_views(ops: Ops, dtype: torch.dtype) -> None:
    joint, weight = random(7, 5, 24, dtype=dtype), random(24, dtype=dtype, seed=1)
    for view in (joint[:, 1:4], joint[:, :, ::2], joint[1::2], joint.transpose(0, 1)):
        w = weight[: view.shape[-1]]
        assert error(ops["qk_norm"](view, w, 1e-6), normed(view, w, 1e-6)) < TOLERANCE[dtype]
    columns = random(6, 48, dtype=dtype)[:, 8:32]
    assert error(ops["rms_norm"](columns, weight, 1e-6), normed(columns, weight, 1e-6)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (3, 37), (0, 8), (200, 512)])
def test_add_rms_norm(ops: Ops, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    weight = random(shape[1], dtype=dtype, seed=2)
    kept = x.clone(), residual.clone()
    y, total = ops["add_rms_norm"](x, residual, weight, 1e-6)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])
    assert torch.equal(total, x + residual)
    assert error(y, normed(total, weight, 1e-6)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [(16, 16), (24, 24), (64, 64), (64, 20), (70, 34)])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 200])
def test_rope_and_norms(
    ops: Ops, dtype: torch.dtype, interleaved: bool, dims: tuple[int, int], num_tokens: int
) -> None:
    """Alone like the reference; fused like its parts."""
    dim, rotary = dims
    table = torch.cat((random(50, rotary // 2).cos(), random(50, rotary // 2).sin()), -1)
    positions = torch.tensor([(7 * t) % 50 for t in range(num_tokens)], dtype=torch.int64)
    qkv = random(num_tokens, 4 + 2 + 2, dim, dtype=dtype)
    q, k, v = qkv.clone().split((4, 2, 2), 1)
    kept = q.clone()
    wide = [reference.rope(q.double(), k.double(), table, positions, interleaved=interleaved)]
    got = ops["rope"](q, k, table, positions, interleaved=interleaved)
    assert torch.equal(q, kept)
    for new, want in zip(got, wide[0], strict=True):
        assert new.dtype == dtype
        assert error(new, want) < TOLERANCE[dtype]

    q_weight, k_weight = random(dim, dtype=dtype, seed=2), random(dim, dtype=dtype, seed=3)
    for weights in ((q_weight, k_weight), (None, None), (q_weight, None)):
        normal_q = q.double() if weights[0] is None else normed(q, weights[0], 1e-6)
        normal_k = k.double() if weights[1] is None else normed(k, weights[1], 1e-6)
        wanted = reference.rope(normal_q, normal_k, table, positions, interleaved=interleaved)
        fused = ops["qk_norm_rope"](qkv.clone(), (4, 2, 2), *weights, 1e-6, table, positions, interleaved=interleaved)
        for new, want in zip(fused[:2], wanted, strict=True):
            assert new.dtype == dtype
            assert error(new, want) < TOLERANCE[dtype]
        assert torch.equal(fused[2], v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 40), (3, 34), (0, 32), (130, 512), (2, 2)])
def test_silu_and_mul(ops: Ops, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = random(*shape, dtype=dtype) * 4
    gate, up = x.double().chunk(2, -1)
    assert error(ops["silu_and_mul"](x), gate / (1 + (-gate).exp()) * up) < TOLERANCE[dtype]
    columns = random(5, 60, dtype=dtype)[:, 3:45]
    gate, up = columns.double().chunk(2, -1)
    assert error(ops["silu_and_mul"](columns), gate / (1 + (-gate).exp()) * up) < TOLERANCE[dtype]


def test_activation_of_extreme_values(ops: Ops) -> None:
    x = torch.tensor([[-1e4, 1e4, 0.0, float("nan")] * 4 + [1.0] * 16])
    got = ops["silu_and_mul"](x)[0, :4]
    assert got[:3].tolist() == [0.0, 1e4, 0.0] or (abs(float(got[0])) < 1e-30 and got[1:3].tolist() == [1e4, 0.0])
    assert got[3].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(16, 32), (48, 64), (33, 48), (48, 40), (528, 96), (4096, 32)])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 4, 5, 16, 31, 33, 50])
def test_linear(ops: Ops, dtype: torch.dtype, bias: bool, sizes: tuple[int, int], num_tokens: int) -> None:
    num_out, num_in = sizes
    x, weight = random(num_tokens, num_in, dtype=dtype), random(num_out, num_in, dtype=dtype, seed=1)
    b = random(num_out, dtype=dtype, seed=2) if bias else None
    want = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    got = ops["linear"](x, ops["pack_linear_weight"](weight), b)
    assert got.dtype == dtype
    assert error(got, want) < TOLERANCE[dtype]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2))
@settings(deadline=None, max_examples=40)
def test_linear_of_any_shape(ops: Ops, rows: int, out_blocks: int, in_blocks: int, apart: int) -> None:
    x = random(rows, in_blocks * 32 + apart, dtype=torch.bfloat16)[:, : in_blocks * 32]
    weight = random(out_blocks * 16, in_blocks * 32, dtype=torch.bfloat16, seed=1)
    got = ops["linear"](x, ops["pack_linear_weight"](weight))
    assert error(got, x.double() @ weight.double().T) < 8e-3


@pytest.mark.parametrize("kind", [1, 2])
def test_both_kinds_of_products(library: Kernels, kind: int) -> None:
    """A processor with a matrix unit also has what others use."""
    if library.linear_kind < kind:
        pytest.skip(f"this processor has no products of kind {kind}")
    from plugin_cpu_native.ops import PackedWeight

    for rows in (1, 2, 3, 4, 5, 7, 32, 70):
        x, weight = random(rows, 96, dtype=torch.bfloat16), random(80, 96, dtype=torch.bfloat16, seed=1)
        packed, out = PackedWeight(weight, library), torch.empty(rows, 80, dtype=torch.bfloat16)
        library.linear(x.data_ptr(), packed.pointer, None, out.data_ptr(), rows, 96, 80, 96, kind)
        assert error(out, x.double() @ weight.double().T) < 8e-3


def test_not_a_number_is_passed_on(ops: Ops) -> None:
    x = random(6, 64, dtype=torch.bfloat16)
    x[2, 5] = float("nan")
    weight = random(32, 64, dtype=torch.bfloat16, seed=1)
    bad = ops["linear"](x, ops["pack_linear_weight"](weight)).isnan()
    assert bad[2].all()
    assert not bad[[0, 1, 3, 4, 5]].any()
    bad = ops["rms_norm"](x, weight[0], 1e-6).isnan()
    assert bad[2].all()
    assert not bad[[0, 1, 3, 4, 5]].any()


def test_the_kernels_use_pytorchs_threads(library: Kernels) -> None:
    """One OpenMP runtime in the process: two pools would fight for the cores."""
    code = (
        "import pathlib, torch\n"
        "def runtimes():\n"
        "    lines = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
        "    return {l.split()[-1] for l in lines if 'omp' in l.rpartition('/')[2] and '.so' in l}\n"
        "before = runtimes()\n"
        "from plugin_cpu_native.library import kernels\n"
        "kernels()\n"
        "assert len(before) == 1 and runtimes() == before, (before, runtimes())"
    )
    # In a process of its own: other packages of this environment may have brought a runtime along.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
