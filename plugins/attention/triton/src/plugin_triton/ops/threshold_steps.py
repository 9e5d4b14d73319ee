"""What the kernels of `threshold` share: the order of float32, one step of a search, masses as integers."""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.ops.noise import exp

# ruff: noqa: N803
WAYS = tl.constexpr(5)  # parts that a step of a search within one program cuts a range into
LIMITS = tl.constexpr(4)  # values between them
MAX_SPLITS = tl.constexpr(64)  # of a row over programs


@triton.jit
def order(x):  # type: ignore[no-untyped-def]
    """float32 -> int64 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def value(number):  # type: ignore[no-untyped-def]
    """The float32 that `order` made this number of."""
    bits = number.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def limits_between(low, high):  # type: ignore[no-untyped-def]
    """[4] float32: values that cut low .. high (numbers of `order`, low < high) into five parts."""
    step = (high - low + WAYS - 1) // WAYS
    return value(tl.minimum(low + (tl.arange(0, LIMITS) + 1).to(tl.int64) * step, high))


@triton.jit
def narrowed(low, high, sums, enough):  # type: ignore[no-untyped-def]
    """The part of low .. high that holds the largest value with enough at or above it; sums [4] of the limits'."""
    step = (high - low + WAYS - 1) // WAYS
    count = tl.sum((sums >= enough).to(tl.int64), axis=0)
    above = tl.where(count < LIMITS, tl.minimum(low + (count + 1) * step, high) - 1, high)
    below = tl.minimum(low + count * step, high)
    return below, tl.maximum(below, above)


@triton.jit
def base_of(best):  # type: ignore[no-untyped-def]
    """What exponentials are taken relative to: a row's largest value, or 0 where that is infinite."""
    return tl.where((best > float("-inf")) & (best < float("inf")), best, 0.0)


@triton.jit
def weight(x, base, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """exp(x - base) in units of 2^-SHIFT, int64: sums of these are the same in every order."""
    fine = tl.exp((x - base).to(tl.float64))
    return (tl.minimum(fine, 1.0) * (1 << SHIFT) + 0.5).to(tl.int64)


@triton.jit
def rough_weight(x, base, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The float32 exp(x - base) as two int64, of which one is 0: in units of 2^-SHIFT where these hold all of its 24
    bits, in units of 2^-(2 * SHIFT - 23) of smaller ones. The reference makes the sum of a row without top-k of float32
    exponentials: the same ones are needed, or where the share ends within their errors the edge is another token."""
    small: tl.constexpr = 1.0 / (1 << (SHIFT - 23))
    unit: tl.constexpr = float(1 << SHIFT)
    fine: tl.constexpr = float(1 << (2 * SHIFT - 23))
    rough = tl.minimum(exp(x - base), 1.0)
    is_small = rough < small
    whole = (rough * tl.where(is_small, fine, unit)).to(tl.int64)
    return tl.where(is_small, 0, whole), tl.where(is_small, whole, 0)


@triton.jit
def whole_mass(masses, row, splits, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a row, float64 in units of 2^-SHIFT, from the parts' sums of `rough_weight`: masses [R, splits, 2]."""
    part = tl.arange(0, MAX_SPLITS)
    at = masses + (row * splits + part) * 2
    large = tl.sum(tl.load(at, mask=part < splits, other=0), axis=0)
    small = tl.sum(tl.load(at + 1, mask=part < splits, other=0), axis=0)
    rest: tl.constexpr = 1.0 / (1 << (SHIFT - 23))
    return large.to(tl.float64) + small.to(tl.float64) * rest


@triton.jit
def top_of(tops, row, splits):  # type: ignore[no-untyped-def]
    """The largest value of a row, from those of its parts: tops [R, splits]."""
    part = tl.arange(0, MAX_SPLITS)
    return tl.max(tl.load(tops + row * splits + part, mask=part < splits, other=float("-inf")), axis=0)


@triton.jit
def members(row_start, ids, start, count, SIZE: tl.constexpr, GROUP: tl.constexpr, LIST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns of the groups ids[start : min(start + LIST, count)], [LIST * GROUP] float32; the rest is -inf."""
    slots = start + tl.arange(0, LIST)
    groups = tl.load(ids + slots, mask=slots < count, other=0)
    cols = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (slots < count)[:, None] & (cols < SIZE)
    x = tl.load(row_start + cols, mask=inside, other=float("-inf"))
    return tl.reshape(x, [LIST * GROUP])
