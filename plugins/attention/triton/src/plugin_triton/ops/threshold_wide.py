"""Kernels of `threshold` for rows whose nucleus is wide: the flat distributions for which `solve_kernel` leaves a mark.

A row without top-k whose nucleus has more tokens than fit a buffer. Two passes over the row narrow the values between
which the nucleus ends, 17 times each; one more sums exactly what lies above and gathers what lies between; one program
a row finds the edge among these. Rows without the mark are left at once."""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.dependent import release, wait
from plugin_triton.ops.threshold_steps import (
    LIMITS,
    MAX_SPLITS,
    base_of,
    limits_between,
    narrowed,
    order,
    top_of,
    value,
    weight,
    whole_mass,
)

# ruff: noqa: N803
_NEG_INF, _INF = tl.constexpr(float("-inf")), tl.constexpr(float("inf"))
_CUTS = tl.constexpr(16)
_FAR = tl.constexpr(1 << 40)  # beyond every order
# What sums of float32 and fast exponentials may be off by; the exact pass checks that nothing was lost.
_BELOW, _ABOVE = tl.constexpr(1.0 - 2e-5), tl.constexpr(1.0 + 2e-5)


@triton.jit
def _cuts(low, high, best):  # type: ignore[no-untyped-def]
    """[16] float32 values between."""
    return low + (tl.minimum(high, best) - low) * ((tl.arange(0, _CUTS) + 1).to(tl.float32) * (1.0 / 17))


@triton.jit
def _between(ranges, parts, row, best, enough, splits):  # type: ignore[no-untyped-def]
    """The range that a pass leaves: enough lies at or above its low end, and not enough at or above its high end."""
    low, high = tl.load(ranges + row * 2), tl.load(ranges + row * 2 + 1)
    part, cut = tl.arange(0, MAX_SPLITS)[:, None], tl.arange(0, _CUTS)[None, :]
    sums = tl.sum(tl.load(parts + (row * splits + part) * _CUTS + cut, mask=part < splits, other=0.0), axis=0)
    cuts = _cuts(low, high, best)
    low = tl.maximum(low, tl.max(tl.where(sums >= enough * _ABOVE, cuts, _NEG_INF), axis=0))
    return low, tl.minimum(high, tl.min(tl.where(sums < enough * _BELOW, cuts, _INF), axis=0))


@triton.jit
def _enough(top_p, masses, row, splits, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mass that the nucleus has to reach, float64 in units of 2^-SHIFT."""
    return tl.load(top_p + row) * whole_mass(masses, row, splits, SHIFT)


@triton.jit(do_not_specialize=["splits", "each"])
def narrow_kernel(  # type: ignore[no-untyped-def]
    scaled, top_p, tops, masses, pending, ranges, parts, next_ranges, next_parts, splits, each,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, LANES: tl.constexpr, SHIFT: tl.constexpr, FIRST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """next_parts [R, splits, 16] float32: the mass at or above each of 16 values of a range, in units of the most
    likely token's. FIRST: of `next_ranges` [R, 2] float32 as `solve_kernel` left it; else of the one that the pass with
    `ranges` and `parts` leaves, which is stored there. Grid (R, splits)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    release(PDL)
    wait(PDL)
    if tl.load(pending + row) != 0:
        best = top_of(tops, row, splits)
        if FIRST:
            low, high = tl.load(next_ranges + row * 2), tl.load(next_ranges + row * 2 + 1)
        else:
            unit: tl.constexpr = 1.0 / (1 << SHIFT)
            enough = (_enough(top_p, masses, row, splits, SHIFT) * unit).to(tl.float32)
            low, high = _between(ranges, parts, row, best, enough, splits)
            if split == 0:
                tl.store(next_ranges + row * 2, low)
                tl.store(next_ranges + row * 2 + 1, high)
        cuts = _cuts(low, high, best)
        base = base_of(best)
        sums = tl.zeros([_CUTS, LANES], tl.float32)
        for index in range(each):
            cols = (split * each + index) * LANES + tl.arange(0, LANES)
            x = tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_NEG_INF)
            sums += tl.where(x[None, :] >= cuts[:, None], tl.exp(x - base)[None, :], 0.0)
        tl.store(next_parts + (row * splits + split) * _CUTS + tl.arange(0, _CUTS), tl.sum(sums, axis=1))


@triton.jit(do_not_specialize=["splits", "each"])
def collect_kernel(  # type: ignore[no-untyped-def]
    scaled, top_p, tops, masses, pending, ranges, parts, counters, kept, weights, exact, ends, splits, each,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, LANES: tl.constexpr, CAPACITY: tl.constexpr, SHIFT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """What lies in the range that the pass with `ranges` and `parts` left: kept [R, CAPACITY] float32 and its weights
    int64, in any order, and counters [R] int32, how many these are (more than CAPACITY are not stored).
    exact [R, splits, 2] int64: the masses above the range and in it; ends [R, splits, 2] int64: orders of the least and
    the largest value in it. Grid (R, splits)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    release(PDL)
    wait(PDL)
    if tl.load(pending + row) != 0:
        best = top_of(tops, row, splits)
        unit: tl.constexpr = 1.0 / (1 << SHIFT)
        enough = (_enough(top_p, masses, row, splits, SHIFT) * unit).to(tl.float32)
        low, high = _between(ranges, parts, row, best, enough, splits)
        base = base_of(best)
        above, within = tl.zeros([LANES], tl.int64), tl.zeros([LANES], tl.int64)
        least, most = tl.full([LANES], _INF, tl.float32), tl.full([LANES], _NEG_INF, tl.float32)
        for index in range(each):
            cols = (split * each + index) * LANES + tl.arange(0, LANES)
            ok = cols < SIZE
            x = tl.load(scaled + row * STRIDE + cols, mask=ok, other=_NEG_INF)
            mine = weight(x, base, SHIFT)
            inside = ok & (x >= low) & (x < high)
            above += tl.where(x >= high, mine, 0)
            within += tl.where(inside, mine, 0)
            least = tl.minimum(least, tl.where(inside, x, _INF))
            most = tl.maximum(most, tl.where(inside, x, _NEG_INF))
            count = tl.sum(inside.to(tl.int32), axis=0)
            if count > 0:
                first = tl.atomic_add(counters + row, count, sem="relaxed")
                slots = first + tl.cumsum(inside.to(tl.int32), axis=0) - 1
                fits = inside & (slots < CAPACITY)
                tl.store(kept + row * CAPACITY + slots, x, mask=fits)
                tl.store(weights + row * CAPACITY + slots, mine, mask=fits)
        at = (row * splits + split) * 2
        tl.store(exact + at, tl.sum(above, axis=0))
        tl.store(exact + at + 1, tl.sum(within, axis=0))
        tl.store(ends + at, order(tl.min(least, axis=0)))
        tl.store(ends + at + 1, order(tl.max(most, axis=0)))


@triton.jit(do_not_specialize=["splits"])
def finish_kernel(  # type: ignore[no-untyped-def]
    scaled, top_p, tops, masses, pending, counters, kept, weights, exact, ends, limits, splits,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, CAPACITY: tl.constexpr, CHUNK: tl.constexpr, SHIFT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """limits [R]: raised to the edge of the nucleus. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, MAX_SPLITS)
    ours = part < splits
    at_part = (row * splits + part) * 2
    lanes = tl.arange(0, CHUNK)
    release(PDL)
    wait(PDL)
    if tl.load(pending + row) != 0:
        best = top_of(tops, row, splits)
        base = base_of(best)
        enough = _enough(top_p, masses, row, splits, SHIFT)
        above = tl.sum(tl.load(exact + at_part, mask=ours, other=0), axis=0)
        within = tl.sum(tl.load(exact + at_part + 1, mask=ours, other=0), axis=0)
        least = tl.load(ends + at_part, mask=ours, other=_FAR)
        most = tl.load(ends + at_part + 1, mask=ours, other=-_FAR)
        sure = (above.to(tl.float64) < enough) & ((above + within).to(tl.float64) >= enough)
        num = tl.load(counters + row)
        low = tl.where(sure, tl.min(least, axis=0), order(tl.full([], _NEG_INF, tl.float32)))
        high = tl.where(sure, tl.max(most, axis=0), order(best))
        gathered = sure & (num <= CAPACITY)
        while low < high:
            at = limits_between(low, high)
            sums = tl.zeros([LIMITS], tl.int64)
            if gathered:
                for start in range(0, num, CHUNK):
                    slots = start + lanes
                    x = tl.load(kept + row * CAPACITY + slots, mask=slots < num, other=_NEG_INF)
                    mine = tl.load(weights + row * CAPACITY + slots, mask=slots < num, other=0)
                    sums += tl.sum(tl.where(x[None, :] >= at[:, None], mine[None, :], 0), axis=1)
                sums += above
            else:  # masses of equal values: the row once more for each step, of which there are few
                for start in range(0, SIZE, CHUNK):
                    cols = start + lanes
                    x = tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_NEG_INF)
                    mine = weight(x, base, SHIFT)
                    sums += tl.sum(tl.where(x[None, :] >= at[:, None], mine[None, :], 0), axis=1)
            low, high = narrowed(low, high, sums.to(tl.float64), enough)
        edge = value(low)
        if edge == _NEG_INF:
            # The exact sum of all falls short of the share of the rough one, or the row has but infinities: all stay.
            lowest = tl.full([CHUNK], _INF, tl.float32)
            for start in range(0, SIZE, CHUNK):
                cols = start + lanes
                lowest = tl.minimum(lowest, tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_INF))
            edge = tl.min(lowest, axis=0)
        tl.store(limits + row, tl.maximum(tl.load(limits + row), edge))
