"""Each reference against a float64 oracle written the long way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import reference as ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative norm of the difference."""
    assert got.shape == want.shape
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 5])
def test_linear(dtype: torch.dtype, bias: bool, num_tokens: int) -> None:
    x, weight = random(num_tokens, 48, dtype=dtype), random(33, 48, dtype=dtype, seed=1)
    b = random(33, dtype=dtype, seed=2) if bias else None
    want = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    got = ops.linear(x, ops.pack_linear_weight(weight), b)
    assert got.dtype == dtype
    assert error(got, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 64), (5, 4, 32), (0, 16)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = random(*shape, dtype=dtype) * 3, random(shape[-1], dtype=dtype, seed=1)
    wide = x.double()
    want = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    for op in (ops.rms_norm, ops.qk_norm):
        got = op(x, weight, 1e-5)
        assert got.dtype == dtype
        assert error(got, want) < TOLERANCE[dtype]


def test_rms_norm_keeps_large_values_finite() -> None:
    x = torch.full((1, 64), 3e4, dtype=torch.float16)
    assert torch.allclose(ops.rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6), torch.ones(1, 64).half())


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, residual, weight = random(3, 64, dtype=dtype), random(3, 64, dtype=dtype, seed=1), random(64, dtype=dtype)
    kept = residual.clone()
    y, new = ops.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, kept)
    assert torch.equal(new, x + residual)
    wide = new.double()
    want = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert error(y, want) < TOLERANCE[dtype]


def rope_oracle(x: torch.Tensor, positions: list[int], rotary: int, interleaved: bool) -> torch.Tensor:
    out = x.double().clone()
    half = rotary // 2
    for t, position in enumerate(positions):
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            angle = position * 10000.0 ** (-2 * i / rotary)
            first, second = x[t, :, a].double(), x[t, :, b].double()
            out[t, :, a] = first * math.cos(angle) - second * math.sin(angle)
            out[t, :, b] = second * math.cos(angle) + first * math.sin(angle)
    return out


def cos_sin_table(num_positions: int, rotary: int) -> torch.Tensor:
    inverse = 10000.0 ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * inverse
    return torch.cat((angles.cos(), angles.sin()), -1).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [4, 16])
@pytest.mark.parametrize("num_tokens", [1, 3, 700])  # 700 takes the way for many elements
def test_rope(dtype: torch.dtype, interleaved: bool, rotary: int, num_tokens: int) -> None:
    positions = [(7 * t) % 50 for t in range(num_tokens)]
    q, k = random(num_tokens, 4, 16, dtype=dtype), random(num_tokens, 2, 16, dtype=dtype, seed=1)
    kept = q.clone()
    got = ops.rope(q, k, cos_sin_table(50, rotary), torch.tensor(positions), interleaved=interleaved)
    assert torch.equal(q, kept)
    for new, old in zip(got, (q, k), strict=True):
        assert new.dtype == dtype
        assert error(new, rope_oracle(old, positions, rotary, interleaved)) < TOLERANCE[dtype]
        assert torch.equal(new[..., rotary:], old[..., rotary:])


def test_rope_takes_views_of_a_joint_projection() -> None:
    joint = random(3, 4 * 8 + 2 * 8 + 2 * 8)
    q, k = joint[:, :32].view(3, 4, 8), joint[:, 32:48].view(3, 2, 8)
    positions = torch.tensor([0, 3, 9])
    got_q, got_k = ops.rope(q, k, cos_sin_table(10, 8), positions)
    assert error(got_q, rope_oracle(q, [0, 3, 9], 8, False)) < 1e-6
    assert error(got_k, rope_oracle(k, [0, 3, 9], 8, False)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations(dtype: torch.dtype) -> None:
    x = random(3, 40, dtype=dtype)
    kept = x.clone()
    gate, up = x.double()[:, :20], x.double()[:, 20:]
    assert error(ops.silu_and_mul(x), gate / (1 + (-gate).exp()) * up) < TOLERANCE[dtype]
    erf = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    tanh = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    assert error(ops.gelu_and_mul(x), erf * up) < TOLERANCE[dtype]
    assert error(ops.gelu_and_mul(x, approximate="tanh"), tanh * up) < TOLERANCE[dtype]
    assert torch.equal(x, kept)


@given(st.integers(1, 5), st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=40)
def test_topk_softmax(num_tokens: int, num_experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_experts))
    renormalize = data.draw(st.booleans())
    logits = random(num_tokens, num_experts, seed=data.draw(st.integers(0, 1000))) * 4
    weights, ids = ops.topk_softmax(logits, k, renormalize)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int64
    odds = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
    for row in range(num_tokens):
        want = sorted(range(num_experts), key=lambda e: -float(odds[row, e]))[:k]
        assert ids[row].tolist() == want
        expected = odds[row, want] / (odds[row, want].sum() if renormalize else 1)
        assert error(weights[row], expected) < 1e-5


def test_store_kv_writes_the_named_rows_only() -> None:
    k_cache, v_cache = torch.zeros(8, 2, 4), torch.zeros(8, 2, 3)
    k, v = random(2, 2, 4), random(2, 2, 3, seed=1)
    ops.store_kv(k, v, k_cache, v_cache, torch.tensor([5, 2]))
    assert torch.equal(k_cache[[5, 2]], k)
    assert torch.equal(v_cache[[5, 2]], v)
    others = [0, 1, 3, 4, 6, 7]
    assert not k_cache[others].any()
    assert not v_cache[others].any()


def test_store_kv_converts_to_the_dtype_of_the_cache() -> None:
    k_cache, v_cache = torch.zeros(4, 1, 2, dtype=torch.float32), torch.zeros(4, 1, 2, dtype=torch.float32)
    k = random(1, 1, 2, dtype=torch.bfloat16)
    ops.store_kv(k, k, k_cache, v_cache, torch.tensor([3]))
    assert torch.equal(k_cache[3], k[0].float())


def test_embedding() -> None:
    weight = random(6, 4)
    assert torch.equal(ops.embedding(torch.tensor([5, 0, 5]), weight), weight[[5, 0, 5]])
