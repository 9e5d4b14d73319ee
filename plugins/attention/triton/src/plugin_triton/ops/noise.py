"""The sampler's noise: the bits of `core.ops.sampling`, on the device."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from core.ops import sampling
from plugin_triton.interpreter import INTERPRETED

_MURMUR_A = tl.constexpr(sampling._MURMUR_A & 0xFFFFFFFF)
_MURMUR_B = tl.constexpr(sampling._MURMUR_B & 0xFFFFFFFF)
_SCALE = tl.constexpr(sampling._SCALE)
_HALF = tl.constexpr(sampling._HALF)


@triton.jit
def log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm to the last place or two; Triton's own is a fast approximation."""
    if INTERPRETED:
        return tl.log(x)
    return libdevice.log(x)


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """float32 exponential to the last place or two, the bits of torch's on CUDA; Triton's own is a fast approximation
    whose error grows with the amount of x."""
    if INTERPRETED:
        return tl.exp(x)
    return libdevice.exp(x)


@triton.jit
def _minus_log1p(v):  # type: ignore[no-untyped-def]
    """-log(1 - v) for 0 < v < 1, precise for small v too."""
    if INTERPRETED:
        # log(u) v / (1 - u) with u = 1 - v rounded: the rounding of u cancels out (Kahan).
        u = 1.0 - v
        return tl.where(u == 1.0, v, -tl.log(u) * v / tl.where(u == 1.0, 1.0, 1.0 - u))
    return -libdevice.log1p(-v)


@triton.jit
def log_exponential(spread, first, second):  # type: ignore[no-untyped-def]
    """log(E) with E exponentially distributed, from int32 words: `spread` of the tokens, two key words of the row.
    Launch with enable_fp_fusion=False: the product and the sum are rounded apart."""
    h = spread.to(tl.uint32, bitcast=True) + first.to(tl.uint32, bitcast=True)
    h = h ^ (h >> 16)
    h = h * tl.full([], _MURMUR_A, tl.uint32)
    h = h ^ second.to(tl.uint32, bitcast=True)
    h = h ^ (h >> 13)
    h = h * tl.full([], _MURMUR_B, tl.uint32)
    h = h ^ (h >> 16)
    v = (h >> 1).to(tl.int32).to(tl.float32) * _SCALE + _HALF
    return log(_minus_log1p(v))
