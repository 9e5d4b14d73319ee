"""Top-k, top-p and min-p as one threshold for each row, without sorting.

Both the k-th largest logit and the edge of the nucleus are "the largest value v such that what lies at or above v is
enough": k tokens, or the share top_p of the probability. So each is a search over the values, that is over the 2^32
patterns of float32 in their order, which takes two bits at a time: one pass over the row counts what lies above three
values. Sums of probabilities are taken in float32 while searching; the value found is then put right in float64.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import Launch
from plugin_triton.ops.noise import log

# ruff: noqa: N803
_BLOCK = 8192
_LANES = tl.constexpr(4)  # elements that one thread adds up before others: as many as it loads at once
_MAX_STEPS = tl.constexpr(64)  # of putting right; float32 sums are off by a value or two


@triton.jit
def _order(x):  # type: ignore[no-untyped-def]
    """float32 -> int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(order):  # type: ignore[no-untyped-def]
    """The float32 that `_order` made this int32 of."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _lane_sums(x, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK] -> [BLOCK / _LANES], sums of neighbours."""
    return tl.sum(tl.reshape(x, (BLOCK // _LANES, _LANES)), axis=1)


@triton.jit
def _search(  # type: ignore[no-untyped-def]
    row, low, high, enough, best, SIZE: tl.constexpr, BLOCK: tl.constexpr, MASS: tl.constexpr
):  # fmt: skip
    """The largest v in [low, high] (orders, int64) such that the tokens at or above v are at least `enough` (float32),
    or their probabilities sum to it (MASS, in units of the most likely token's); `low` if there is none."""
    while low < high:
        step = (high - low + 3) // 4
        one, two, three = low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)
        # As int32 a bound may lie one above the highest order, which nothing reaches: that of a NaN.
        at_one, at_two, at_three = one.to(tl.int32), two.to(tl.int32), three.to(tl.int32)
        # Counts stay below 2^24, where float32 still counts by ones.
        above_one = tl.zeros([BLOCK // _LANES], tl.float32)
        above_two = tl.zeros([BLOCK // _LANES], tl.float32)
        above_three = tl.zeros([BLOCK // _LANES], tl.float32)
        for start in range(0, SIZE, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            x = tl.load(row + cols, mask=cols < SIZE, other=float("-inf"))
            order = _order(x)
            weight = tl.where(cols < SIZE, 1.0, 0.0)
            if MASS:
                weight = tl.where(cols < SIZE, tl.exp(x - best), 0.0)
            above_one += _lane_sums(tl.where(order >= at_one, weight, 0.0), BLOCK)
            above_two += _lane_sums(tl.where(order >= at_two, weight, 0.0), BLOCK)
            above_three += _lane_sums(tl.where(order >= at_three, weight, 0.0), BLOCK)
        if tl.sum(above_three, axis=0) >= enough:
            low = three
        elif tl.sum(above_two, axis=0) >= enough:
            low = two
            high = three - 1
        elif tl.sum(above_one, axis=0) >= enough:
            low = one
            high = two - 1
        else:
            high = one - 1
    return low


@triton.jit
def _mass(row, low, best, SIZE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum of exp(x - best) over the tokens at or above `low` (an order), added in float64. WIDE: exponentials too."""
    total = tl.zeros([BLOCK // _LANES], tl.float64)
    at = low.to(tl.int32)
    for start in range(0, SIZE, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(row + cols, mask=cols < SIZE, other=float("-inf"))
        kept = (_order(x) >= at) & (cols < SIZE)
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            weight = tl.exp((x - best).to(tl.float64)) if WIDE else tl.exp(x - best).to(tl.float64)
            total += _lane_sums(tl.where(kept, weight, 0.0), BLOCK)
    return tl.sum(total, axis=0)


@triton.jit
def _nucleus(  # type: ignore[no-untyped-def]
    row, low, high, share, mass, best, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The order of the smallest value among those from `low` on such that less than share * mass lies above it."""
    enough = share * mass
    found = _search(row, low, high, enough.to(tl.float32), best, SIZE, BLOCK, True).to(tl.int32)
    steps = 0
    while steps < _MAX_STEPS:
        above = tl.zeros([BLOCK // _LANES], tl.float64)
        equal = tl.zeros([BLOCK // _LANES], tl.float64)
        up = tl.full([], 2147483647, tl.int32)
        down = tl.full([], -2147483648, tl.int32)
        for start in range(0, SIZE, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            ok = cols < SIZE
            x = tl.load(row + cols, mask=ok, other=float("-inf"))
            order = _order(x)
            up = tl.minimum(up, tl.min(tl.where(ok & (order > found), order, 2147483647), axis=0))
            down = tl.maximum(down, tl.max(tl.where(ok & (order < found), order, -2147483648), axis=0))
            kept = ok & (order >= found)
            if tl.max(kept.to(tl.int32), axis=0) > 0:
                weight = tl.exp((x - best).to(tl.float64))
                above += _lane_sums(tl.where(kept & (order > found), weight, 0.0), BLOCK)
                equal += _lane_sums(tl.where(kept & (order == found), weight, 0.0), BLOCK)
        over = tl.sum(above, axis=0)
        steps += 1
        if (over >= enough) & (up.to(tl.int64) <= high):
            found = up
        elif (over + tl.sum(equal, axis=0) < enough) & (down.to(tl.int64) >= low):
            found = down
        else:
            steps = _MAX_STEPS
    return found


@triton.jit
def threshold_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, min_p, limits,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """limits [R] float32; a row of scaled [R, SIZE] float32 is one program's."""
    number = tl.program_id(0).to(tl.int64)
    row = scaled + number * STRIDE
    release(PDL)
    wait(PDL)
    k, share, floor = tl.load(top_k + number), tl.load(top_p + number), tl.load(min_p + number)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    for start in range(0, SIZE, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        ok = cols < SIZE
        largest = tl.maximum(largest, tl.load(row + cols, mask=ok, other=float("-inf")))
        smallest = tl.minimum(smallest, tl.load(row + cols, mask=ok, other=float("inf")))
    best = tl.max(largest, axis=0)
    high = _order(best).to(tl.int64)
    low = _order(tl.min(smallest, axis=0)).to(tl.int64)
    limit = tl.where(floor > 0, best + log(tl.where(floor > 0, floor, 1.0)), float("-inf"))
    if k > 0:
        low = _search(row, low, high, tl.minimum(k, SIZE).to(tl.float32), best, SIZE, BLOCK, False)
        limit = tl.maximum(limit, _value(low.to(tl.int32)))
    if share < 1.0:
        if k > 0:
            mass = _mass(row, low, best, SIZE, BLOCK, True)
        else:
            mass = _mass(row, low, best, SIZE, BLOCK, False)
        edge = best
        if share > 0.0:
            edge = _value(_nucleus(row, low, high, share, mass, best, SIZE, BLOCK))
        limit = tl.maximum(limit, edge)
    tl.store(limits + number, limit)


def sampling_threshold(
    scaled: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    *,
    max_k: int,
    any_without_k: bool,
    any_top_p: bool,
) -> torch.Tensor:
    """scaled [R, V] float32, top_k [R] int64, top_p [R] float64, min_p [R] float32 -> [R] float32."""
    if scaled.dtype is not torch.float32 or scaled.stride(1) != 1 or not scaled.shape[1]:
        return reference.sampling_threshold(
            scaled, top_k, top_p, min_p, max_k=max_k, any_without_k=any_without_k, any_top_p=any_top_p
        )
    limits = torch.empty(scaled.shape[0], dtype=torch.float32, device=scaled.device)
    if scaled.shape[0]:
        types = (top_k.dtype, top_p.dtype, min_p.dtype)
        launch = _plan(scaled.device, types, scaled.shape[1], scaled.stride(0))
        launch(scaled.get_device(), (scaled.shape[0], 1, 1), scaled, top_k, top_p, min_p, limits)
    return limits


@functools.cache
def _plan(device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int) -> Launch:
    pdl = dependent(device)
    block = min(_BLOCK, triton.next_power_of_2(size))
    return Launch(threshold_kernel, (stride, size, block, pdl), num_warps=max(1, min(32, block // 512)), pdl=pdl)
