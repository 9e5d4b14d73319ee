"""Products of one and of few rows by every kind of configuration, against float64."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from plugin_triton.ops.configs import Config
from plugin_triton.ops.linear import Gemv, arrivals, fused_linear, linear, make_plan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu") if INTERPRETED else torch.device("cuda", 0)
# The interpreter cuts what a compiler rounds to bfloat16.
TOLERANCE = {torch.bfloat16: 1.2e-2 if INTERPRETED else 6e-3, torch.float16: 1e-3, torch.float32: 2e-6}
ACTIVATIONS = {
    None: lambda y: y,
    "silu": lambda y: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
    "gelu": lambda y: F.gelu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
    "gelu_tanh": lambda y: F.gelu(y.chunk(2, -1)[0], approximate="tanh") * y.chunk(2, -1)[1],
}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape
    assert got.dtype == dtype
    assert float((got.double() - want).norm() / want.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("n", "k", "block_n", "block_k", "activation", "dtype"),
    [
        (32, 512, 4, 256, None, torch.bfloat16),
        (37, 304, 4, 128, "silu", torch.bfloat16),
        (16, 1024, 2, 1024, "gelu", torch.bfloat16),
        (5, 96, 1, 128, None, torch.bfloat16),
        (33, 640, 8, 256, "gelu_tanh", torch.bfloat16),
        (18, 96, 4, 128, "silu", torch.float16),
        (9, 264, 2, 128, None, torch.float16),
        (10, 260, 4, 64, None, torch.float32),
        (8, 512, 4, 512, "silu", torch.float32),
    ],
)
def test_one_row(n: int, k: int, block_n: int, block_k: int, activation: str | None, dtype: torch.dtype) -> None:
    num = n if activation is None else 2 * n
    x, residual = random(1, k, dtype=dtype, seed=1), random(1, k, dtype=dtype, seed=2)
    weight, norm_weight = random(num, k, dtype=dtype, seed=3), random(k, dtype=dtype, seed=4)
    bias = random(num, dtype=dtype, seed=5)
    plan = make_plan(Config("gemv", block_n, block_k), DEVICE, dtype, n, k, activation, True)
    assert isinstance(plan, Gemv)
    act = ACTIVATIONS[activation]
    assert_close(plan(x, weight, bias), act(x.double() @ weight.double().T + bias.double()), dtype)
    for add in (residual, None):
        y, total, normed = plan.fused(x, weight, bias, add, norm_weight, 1e-5, add is None)
        sums = (x if add is None else x + add).double()
        wide = sums / (sums.pow(2).mean() + 1e-5).sqrt() * norm_weight.double()
        assert total is not None
        if INTERPRETED and dtype is torch.bfloat16:
            assert_close(total, sums, dtype)
        else:
            assert torch.equal(total.double(), sums)
        assert (normed is None) == (add is not None)
        if normed is not None:
            assert_close(normed, wide, dtype)
        assert_close(y, act(wide @ weight.double().T + bias.double()), dtype)


@pytest.mark.parametrize(
    ("n", "k", "block_n", "block_k", "split", "activation", "dtype"),
    [
        (32, 256, 16, 64, 1, None, torch.bfloat16),
        (37, 304, 16, 32, 2, "silu", torch.bfloat16),
        (32, 136, 32, 32, 4, None, torch.bfloat16),
        (16, 64, 16, 64, 4, "gelu_tanh", torch.bfloat16),
        (32, 256, 16, 64, 2, None, torch.float16),
        (21, 128, 16, 32, 1, "gelu", torch.float16),
    ],
)
def test_few_rows(
    n: int, k: int, block_n: int, block_k: int, split: int, activation: str | None, dtype: torch.dtype
) -> None:
    num = n if activation is None else 2 * n
    weight, bias = random(num, k, dtype=dtype, seed=3), random(num, dtype=dtype, seed=5)
    plan = make_plan(Config("skinny", block_n, block_k, 4, split, 3, 1), DEVICE, dtype, n, k, activation, True)
    for rows in (2, 7, 16):
        x = random(rows, k + 8, dtype=dtype, seed=rows)[:, :k]  # rows lie apart
        want = ACTIVATIONS[activation](x.double() @ weight.double().T + bias.double())
        assert_close(plan(x, weight, bias), want, dtype)
    assert not arrivals(DEVICE).any(), "counters are zero between kernels"


def test_what_the_kernels_do_not_take_goes_to_the_library() -> None:
    """Odd widths, other types, weights that lie apart."""
    for x, weight in (
        (random(1, 33, dtype=torch.bfloat16, seed=1), random(8, 33, dtype=torch.bfloat16, seed=2)),
        (random(1, 32, dtype=torch.float32, seed=1).double(), random(8, 32, dtype=torch.float32, seed=2).double()),
        (random(1, 32, dtype=torch.float32, seed=1), random(8, 64, dtype=torch.float32, seed=2)[:, ::2]),
    ):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_norm_of_another_type_is_left_out_of_the_product(rows: int) -> None:
    if rows == 40 and os.environ.get("SANITIZER") == "racecheck":
        pytest.skip("the library's product, which racecheck breaks")
    x, weight = random(rows, 64, dtype=torch.bfloat16, seed=1), random(16, 64, dtype=torch.bfloat16, seed=2)
    y, total, normed = fused_linear(
        x, weight, norm_weight=torch.ones(64, device=DEVICE, dtype=torch.bfloat16), eps=1e-5
    )
    wide: Any = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert total is x
    assert normed is None
    assert_close(y, wide @ weight.double().T, torch.bfloat16)
