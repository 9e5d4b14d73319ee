"""Arithmetic that Triton's interpreter, for tests on a CPU, does otherwise than its compiler."""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.interpreter import INTERPRETED


@triton.jit
def dot(a, b, acc):
    """acc + a @ b, of float32 with all its bits. The interpreter multiplies bfloat16 as if it were integers."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def narrowed(x, TYPE: tl.constexpr):
    """x in TYPE, rounded to nearest, ties to even. The interpreter cuts bfloat16 off, and loses a carry in 8 bits."""
    if INTERPRETED:
        if tl.bfloat16 == TYPE:
            x = _rounded(x.to(tl.float32), 7, 0.0)
        elif tl.float8e4nv == TYPE:
            x = _rounded(x.to(tl.float32), 3, 0.015625)
        elif tl.float8e5 == TYPE:
            x = _rounded(x.to(tl.float32), 2, 0.00006103515625)
    return x.to(TYPE)


@triton.jit
def _rounded(x, BITS: tl.constexpr, NORMAL: tl.constexpr):
    """float32 x with BITS of mantissa; below NORMAL, the least number that has them all, in steps of that one's."""
    low: tl.constexpr = 23 - BITS
    whole = x.to(tl.int32, bitcast=True)
    whole = (whole + ((1 << (low - 1)) - 1) + ((whole >> low) & 1)) & -(1 << low)
    near = whole.to(tl.float32, bitcast=True)
    if NORMAL > 0:
        steps = x * ((1 << BITS) / NORMAL)
        small = ((steps + 12582912.0) - 12582912.0) * (NORMAL / (1 << BITS))  # 1.5 * 2**23 leaves no fraction
        near = tl.where(tl.abs(x) < NORMAL, small, near)
    return near
