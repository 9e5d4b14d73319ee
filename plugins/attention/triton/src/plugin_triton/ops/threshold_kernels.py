"""Kernels of `threshold`, which says what they do together."""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.dependent import release, wait
from plugin_triton.ops.noise import log
from plugin_triton.ops.threshold_steps import (
    LIMITS,
    base_of,
    limits_between,
    members,
    narrowed,
    order,
    rough_weight,
    top_of,
    value,
    weight,
    whole_mass,
)

# ruff: noqa: N803
_NEG_INF = tl.constexpr(float("-inf"))
# A bound found with sums of float32 exponentials must hold for the exact ones.
_MARGIN = tl.constexpr(1.0001)


@triton.jit(do_not_specialize=["splits"])
def maxima_kernel(  # type: ignore[no-untyped-def]
    scaled, maxima, tops, splits, span, STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """maxima [R, cdiv(SIZE, GROUP)]: the largest of each GROUP columns; tops [R, splits]: of each part of a row.
    Grid (R, splits)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    groups: tl.constexpr = (SIZE + GROUP - 1) // GROUP
    each: tl.constexpr = BLOCK // GROUP
    top = tl.full([each], _NEG_INF, tl.float32)
    release(PDL)
    wait(PDL)
    for start in range(0, span, BLOCK):
        first = split * span + start
        cols = first + tl.arange(0, each)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_NEG_INF)
        found = tl.max(x, axis=1)
        group = first // GROUP + tl.arange(0, each)
        tl.store(maxima + row * groups + group, found, mask=group < groups)
        top = tl.maximum(top, found)
    tl.store(tops + row * splits + split, tl.max(top, axis=0))


@triton.jit(do_not_specialize=["splits"])
def mass_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, tops, masses, splits, span, STRIDE: tl.constexpr, SIZE: tl.constexpr,
    LANES: tl.constexpr, SHIFT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """masses [R, splits, 2] int64: sums of `rough_weight` of each part of a row, of rows with top-p and without top-k.
    Grid (R, splits)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    release(PDL)
    wait(PDL)
    if (tl.load(top_k + row) == 0) & (tl.load(top_p + row) < 1.0):
        base = base_of(top_of(tops, row, splits))
        large, small = tl.zeros([LANES], tl.int64), tl.zeros([LANES], tl.int64)
        for start in range(0, span, LANES):
            cols = split * span + start + tl.arange(0, LANES)
            x = tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_NEG_INF)
            first, second = rough_weight(x, base, SHIFT)
            large += first
            small += second
        at = masses + (row * splits + split) * 2
        tl.store(at, tl.sum(large, axis=0))
        tl.store(at + 1, tl.sum(small, axis=0))


@triton.jit(do_not_specialize=["splits"])
def solve_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, min_p, maxima, masses, ids, kept, weights, limits, pending, ranges, counters, splits,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
    LIST: tl.constexpr, CAPACITY: tl.constexpr, CHUNK: tl.constexpr, SHIFT: tl.constexpr, WITH_K: tl.constexpr,
    WITH_P: tl.constexpr, WITH_MASS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """limits [R] from the groups that can hold what decides. Grid (R,).

    ids [R, TILE] int32, kept [R, CAPACITY] float32 and weights [R, CAPACITY] int64 are scratch: groups to look at, and
    what of them lies above the k-th largest value, in units of 2^-SHIFT."""
    row = tl.program_id(0).to(tl.int64)
    groups: tl.constexpr = (SIZE + GROUP - 1) // GROUP
    lanes = tl.arange(0, TILE)
    ok = lanes < groups
    start_of_row = scaled + row * STRIDE
    release(PDL)
    wait(PDL)
    maximum = tl.load(maxima + row * groups + lanes, mask=ok, other=_NEG_INF)
    maximum = tl.where(maximum == maximum, maximum, _NEG_INF)
    best = tl.max(maximum, axis=0)
    k, share, least_share = tl.minimum(tl.load(top_k + row), SIZE), tl.load(top_p + row), tl.load(min_p + row)
    limit = tl.where(least_share > 0, best + log(tl.where(least_share > 0, least_share, 1.0)), _NEG_INF)
    if (WITH_K and k > 0) | (WITH_P and share < 1.0):
        base = base_of(best)
        mass = tl.full([], 0.0, tl.float64)
        if WITH_MASS:  # not written for rows with top-k, and not used
            mass = whole_mass(masses, row, splits, SHIFT)

        # 1. A lower bound: the k-th largest maximum, or the value above which maxima alone make up the share.
        needed = k.to(tl.float32)
        counted = tl.where(ok, 1.0, 0.0)
        if WITH_MASS:
            unit: tl.constexpr = 1.0 / (1 << SHIFT)
            needed = tl.where(k > 0, needed, (share * mass * unit).to(tl.float32) * _MARGIN)
            counted = tl.where(ok & (k == 0), tl.exp(maximum - base), counted)
        found = tl.sum(counted, axis=0) >= needed
        low = order(tl.min(tl.where(ok, maximum, best), axis=0))
        high = tl.where(found, order(best), low)
        while low < high:
            above = maximum[None, :] >= limits_between(low, high)[:, None]
            sums = tl.sum(tl.where(above, counted[None, :], 0.0), axis=1)
            low, high = narrowed(low, high, sums, needed)
        bound = tl.where(found, value(low), _NEG_INF)

        # 2. The groups that reach above the bound, then those that reach it.
        over = ok & (maximum > bound)
        level = ok & (maximum == bound) & (maximum > _NEG_INF)
        both = over.to(tl.int32) + (level.to(tl.int32) << 16)
        before = tl.cumsum(both, axis=0) - both
        total = tl.sum(both, axis=0)
        num_over, num_listed = total & 0xFFFF, (total & 0xFFFF) + (total >> 16)
        slot = tl.where(over, before & 0xFFFF, num_over + (before >> 16))
        list_of_row = ids + row * TILE
        tl.store(list_of_row + slot, lanes, mask=over | level)
        tl.debug_barrier()  # other threads of this program read it

        # 3. The k-th largest value: among what is above the bound if that is enough, else the bound itself.
        floor = bound
        if WITH_K and k > 0:
            count = tl.full([], 0, tl.int32)
            for start in range(0, num_over, LIST):
                x = members(start_of_row, list_of_row, start, num_over, SIZE, GROUP, LIST)
                count += tl.sum((x > bound).to(tl.int32), axis=0)
            if count >= k:
                low, high = order(bound) + 1, order(best)
                while low < high:
                    at = limits_between(low, high)
                    counts = tl.zeros([LIMITS], tl.int32)
                    for start in range(0, num_over, LIST):
                        x = members(start_of_row, list_of_row, start, num_over, SIZE, GROUP, LIST)
                        counts += tl.sum((x[None, :] >= at[:, None]).to(tl.int32), axis=1)
                    low, high = narrowed(low, high, counts.to(tl.int64), k)
                floor = value(low)
            limit = tl.maximum(limit, floor)

        # 4. The edge of the nucleus: among what is above `floor`, or `floor` itself.
        if WITH_P and share < 1.0:
            wide = (k == 0) & ((not found) | (num_over > CAPACITY))  # rows that are left to `threshold_wide`
            num_listed = tl.where(wide, 0, num_listed)
            num, ties = tl.full([], 0, tl.int32), tl.full([], 0, tl.int64)
            for start in range(0, num_listed, LIST):
                x = members(start_of_row, list_of_row, start, num_listed, SIZE, GROUP, LIST)
                taken = x > floor
                into = num + tl.cumsum(taken.to(tl.int32), axis=0) - 1
                tl.store(kept + row * CAPACITY + into, x, mask=taken & (into < CAPACITY))
                num += tl.sum(taken.to(tl.int32), axis=0)
                ties += tl.sum((x == floor).to(tl.int64), axis=0)
            tl.debug_barrier()
            wide = wide | ((k == 0) & (num > CAPACITY))
            if WITH_MASS:
                tl.store(pending + row, wide.to(tl.int32))
            if wide:
                if WITH_MASS:
                    # What lies this far below the best token is less than half of what the nucleus may leave out.
                    tail = (1.0 - share) * mass * (0.5 / (1 << SHIFT) / SIZE)
                    tl.store(ranges + row * 2, base + log(tail.to(tl.float32)))
                    tl.store(ranges + row * 2 + 1, float("inf"))
                    tl.store(counters + row, 0)
            else:
                above_floor = tl.full([], 0, tl.int64)
                if num <= CAPACITY:
                    for start in range(0, num, CHUNK):
                        slots = start + tl.arange(0, CHUNK)
                        x = tl.load(kept + row * CAPACITY + slots, mask=slots < num, other=_NEG_INF)
                        mine = weight(x, base, SHIFT)
                        tl.store(weights + row * CAPACITY + slots, mine, mask=slots < num)
                        above_floor += tl.sum(mine, axis=0)
                    tl.debug_barrier()
                else:
                    for start in range(0, num_over, LIST):
                        x = members(start_of_row, list_of_row, start, num_over, SIZE, GROUP, LIST)
                        above_floor += tl.sum(tl.where(x > floor, weight(x, base, SHIFT), 0), axis=0)
                if k > 0:
                    mass = (above_floor + ties * weight(floor, base, SHIFT)).to(tl.float64)
                enough = share * mass
                edge = floor
                if above_floor.to(tl.float64) >= enough:
                    low, high = order(floor) + 1, order(best)
                    while low < high:
                        at = limits_between(low, high)
                        sums = tl.zeros([LIMITS], tl.int64)
                        if num <= CAPACITY:
                            for start in range(0, num, CHUNK):
                                slots = start + tl.arange(0, CHUNK)
                                x = tl.load(kept + row * CAPACITY + slots, mask=slots < num, other=_NEG_INF)
                                mine = tl.load(weights + row * CAPACITY + slots, mask=slots < num, other=0)
                                sums += tl.sum(tl.where(x[None, :] >= at[:, None], mine[None, :], 0), axis=1)
                        else:
                            for start in range(0, num_over, LIST):
                                x = members(start_of_row, list_of_row, start, num_over, SIZE, GROUP, LIST)
                                mine = weight(x, base, SHIFT)
                                sums += tl.sum(tl.where(x[None, :] >= at[:, None], mine[None, :], 0), axis=1)
                        low, high = narrowed(low, high, sums.to(tl.float64), enough)
                    edge = value(low)
                limit = tl.maximum(limit, tl.where(share > 0, edge, best))
        elif WITH_MASS:
            tl.store(pending + row, 0)
    elif WITH_MASS:
        tl.store(pending + row, 0)
    tl.store(limits + row, limit)
