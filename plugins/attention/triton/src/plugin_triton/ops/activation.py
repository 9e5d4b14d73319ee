"""Gated activations: act(gate) * up."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import math

from plugin_triton.dependent import release, wait

# ruff: noqa: N803


@triton.jit
def gate(x, ACT: tl.constexpr):  # type: ignore[no-untyped-def]
    """act(x), float32; ACT: "silu", "gelu" or "gelu_tanh"."""
    if ACT == "silu":
        return x * tl.sigmoid(x)
    if ACT == "gelu":
        return 0.5 * x * (1.0 + math.erf(x * 0.7071067811865476))
    # tanh(u) = 2 sigmoid(2u) - 1
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)


@triton.jit
def gate_kernel(x, y, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """x [T, 2 * SIZE] with row stride `stride` -> y [T, SIZE], contiguous. Grid (T, cdiv(SIZE, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = cols < SIZE
    release(PDL)
    wait(PDL)
    start = x + row * stride
    a = tl.load(start + cols, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(start + SIZE + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + row * SIZE + cols, (gate(a, ACT) * b).to(y.dtype.element_ty), mask=ok)
