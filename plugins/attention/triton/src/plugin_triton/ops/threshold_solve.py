"""The kernel of `threshold` that finds a row's threshold from its groups' maxima and the few groups that matter."""

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
    value,
    weight,
    whole_mass,
)

# ruff: noqa: N803
_NEG_INF = tl.constexpr(float("-inf"))
# A bound found with sums of fast float32 exponentials must hold for the exact ones.
_MARGIN = tl.constexpr(1.0001)


@triton.jit
def _lower_bound(maximum, ok, counted, needed, best):  # type: ignore[no-untyped-def]
    """(whether there is one, the largest value with `needed` of `counted` at or above it), float32."""
    found = tl.sum(counted, axis=0) >= needed
    low = order(tl.min(tl.where(ok, maximum, best), axis=0))
    high = tl.where(found, order(best), low)
    while low < high:
        above = maximum[None, :] >= limits_between(low, high)[:, None]
        sums = tl.sum(tl.where(above, counted[None, :], 0.0), axis=1)
        low, high = narrowed(low, high, sums, needed)
    return found, tl.where(found, value(low), _NEG_INF)


@triton.jit
def _listed(ids, maximum, ok, bound, lanes):  # type: ignore[no-untyped-def]
    """Write to `ids` the groups that reach above the bound, then those that reach it: (how many of those, of both)."""
    over = ok & (maximum > bound)
    level = ok & (maximum == bound) & (maximum > _NEG_INF)
    both = over.to(tl.int32) + (level.to(tl.int32) << 16)  # two counts in one
    before = tl.cumsum(both, axis=0) - both
    total = tl.sum(both, axis=0)
    num_over = total & 0xFFFF
    tl.store(ids + tl.where(over, before & 0xFFFF, num_over + (before >> 16)), lanes, mask=over | level)
    tl.debug_barrier()  # other threads of this program read them
    return num_over, num_over + (total >> 16)


@triton.jit
def _kth(row_start, ids, num_over, k, bound, best, SIZE: tl.constexpr, GROUP: tl.constexpr, LIST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The k-th largest value: among what is above the bound if that is enough, else the bound."""
    count = tl.full([], 0, tl.int32)
    for start in range(0, num_over, LIST):
        x = members(row_start, ids, start, num_over, SIZE, GROUP, LIST)
        count += tl.sum((x > bound).to(tl.int32), axis=0)
    low = order(bound)
    high = low
    if count >= k:
        low, high = low + 1, order(best)
    while low < high:
        at = limits_between(low, high)
        counts = tl.zeros([LIMITS], tl.int32)
        for start in range(0, num_over, LIST):
            x = members(row_start, ids, start, num_over, SIZE, GROUP, LIST)
            counts += tl.sum((x[None, :] >= at[:, None]).to(tl.int32), axis=1)
        low, high = narrowed(low, high, counts.to(tl.int64), k)
    return value(low)


@triton.jit
def _keep(
    row_start, ids, num_listed, floor, kept, SIZE: tl.constexpr, GROUP: tl.constexpr, LIST: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Write to `kept` what the listed groups hold above `floor`, as far as it fits: (how much it is, ties with it)."""
    num, ties = tl.full([], 0, tl.int32), tl.full([], 0, tl.int64)
    for start in range(0, num_listed, LIST):
        x = members(row_start, ids, start, num_listed, SIZE, GROUP, LIST)
        taken = (x > floor).to(tl.int32)
        slots = num + tl.cumsum(taken, axis=0) - 1
        tl.store(kept + slots, x, mask=(x > floor) & (slots < CAPACITY))
        num += tl.sum(taken, axis=0)
        ties += tl.sum((x == floor).to(tl.int64), axis=0)
    tl.debug_barrier()
    return num, ties


@triton.jit
def _edge(
    row_start, ids, num_over, kept, weights, num, ties, floor, best, share, mass, with_k,
    SIZE: tl.constexpr, GROUP: tl.constexpr, LIST: tl.constexpr, CAPACITY: tl.constexpr, CHUNK: tl.constexpr,
    SHIFT: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Where the nucleus ends: among the `num` values above `floor` in `kept`, or at `floor`, which it reaches for sure.
    More than fit come from the groups once more for each step. mass: of the row if it is without top-k."""
    base = base_of(best)
    above = tl.full([], 0, tl.int64)
    if num <= CAPACITY:
        for start in range(0, num, CHUNK):
            slots = start + tl.arange(0, CHUNK)
            x = tl.load(kept + slots, mask=slots < num, other=_NEG_INF)
            mine = weight(x, base, SHIFT)
            tl.store(weights + slots, mine, mask=slots < num)
            above += tl.sum(mine, axis=0)
        tl.debug_barrier()
    else:
        for start in range(0, num_over, LIST):
            x = members(row_start, ids, start, num_over, SIZE, GROUP, LIST)
            above += tl.sum(tl.where(x > floor, weight(x, base, SHIFT), 0), axis=0)
    all_kept = (above + ties * weight(floor, base, SHIFT)).to(tl.float64)
    enough = share * tl.where(with_k, all_kept, mass)
    low = order(floor)
    high = low
    if above.to(tl.float64) >= enough:
        high = order(best)
        low = tl.minimum(low + 1, high)
    while low < high:
        at = limits_between(low, high)
        sums = tl.zeros([LIMITS], tl.int64)
        if num <= CAPACITY:
            for start in range(0, num, CHUNK):
                slots = start + tl.arange(0, CHUNK)
                x = tl.load(kept + slots, mask=slots < num, other=_NEG_INF)
                mine = tl.load(weights + slots, mask=slots < num, other=0)
                sums += tl.sum(tl.where(x[None, :] >= at[:, None], mine[None, :], 0), axis=1)
        else:
            for start in range(0, num_over, LIST):
                x = members(row_start, ids, start, num_over, SIZE, GROUP, LIST)
                mine = weight(x, base, SHIFT)
                sums += tl.sum(tl.where(x[None, :] >= at[:, None], mine[None, :], 0), axis=1)
        low, high = narrowed(low, high, sums.to(tl.float64), enough)
    return tl.where(share > 0, value(low), best)


@triton.jit(do_not_specialize=["splits"])
def solve_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, min_p, maxima, masses, ids, kept, weights, limits, pending, ranges, counters, splits,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr,
    CAPACITY: tl.constexpr, CHUNK: tl.constexpr, SHIFT: tl.constexpr, WITH_K: tl.constexpr, WITH_P: tl.constexpr,
    WITH_MASS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """limits [R]: the largest of three thresholds. Grid (R,).

    Scratch: ids [R, TILE] int32, groups to look at; kept [R, CAPACITY] float32 and weights int64, what they hold above
    the k-th largest value, and its mass in units of 2^-SHIFT. LIST: groups looked at at once; CHUNK: of `kept`.
    WITH_MASS, where rows may have top-p alone: pending [R] int32, whether the nucleus is left to `threshold_wide`; then
    ranges [R, 2] float32, between which it ends, and counters [R] int32, 0, are written for it."""
    row = tl.program_id(0).to(tl.int64)
    groups: tl.constexpr = (SIZE + GROUP - 1) // GROUP
    lanes = tl.arange(0, TILE)
    ok = lanes < groups
    release(PDL)
    wait(PDL)
    maximum = tl.load(maxima + row * groups + lanes, mask=ok, other=_NEG_INF)
    maximum = tl.where(maximum == maximum, maximum, _NEG_INF)
    best = tl.max(maximum, axis=0)
    k, share, least_share = tl.minimum(tl.load(top_k + row), SIZE), tl.load(top_p + row), tl.load(min_p + row)
    limit = tl.where(least_share > 0, best + log(tl.where(least_share > 0, least_share, 1.0)), _NEG_INF)
    wide = k < 0  # no
    if (WITH_K and k > 0) | (WITH_P and share < 1.0):
        mass = tl.full([], 0.0, tl.float64)
        needed, counted = k.to(tl.float32), tl.where(ok, 1.0, 0.0)
        if WITH_MASS:  # of rows with top-k it is not written, and not used
            mass = whole_mass(masses, row, splits, SHIFT)
            unit: tl.constexpr = 1.0 / (1 << SHIFT)
            needed = tl.where(k > 0, needed, (share * mass * unit).to(tl.float32) * _MARGIN)
            counted = tl.where(ok & (k == 0), tl.exp(maximum - base_of(best)), counted)
        found, bound = _lower_bound(maximum, ok, counted, needed, best)
        row_start, row_ids = scaled + row * STRIDE, ids + row * TILE
        num_over, num_listed = _listed(row_ids, maximum, ok, bound, lanes)
        floor = bound
        if WITH_K and k > 0:
            floor = _kth(row_start, row_ids, num_over, k, bound, best, SIZE, GROUP, LIST)
            limit = tl.maximum(limit, floor)
        if WITH_P and share < 1.0:
            wide = (k == 0) & ((not found) | (num_over > CAPACITY))
            num_listed = tl.where(wide, 0, num_listed)
            row_kept, row_weights = kept + row * CAPACITY, weights + row * CAPACITY
            num, ties = _keep(row_start, row_ids, num_listed, floor, row_kept, SIZE, GROUP, LIST, CAPACITY)
            wide = wide | ((k == 0) & (num > CAPACITY))
            if not wide:
                edge = _edge(
                    row_start, row_ids, num_over, row_kept, row_weights, num, ties, floor, best, share, mass, k > 0,
                    SIZE, GROUP, LIST, CAPACITY, CHUNK, SHIFT,
                )  # fmt: skip
                limit = tl.maximum(limit, edge)
            elif WITH_MASS:
                # What lies this far below the best token is less than half of what the nucleus may leave out.
                tail = (1.0 - share) * mass * (0.5 / (1 << SHIFT) / SIZE)
                tl.store(ranges + row * 2, base_of(best) + log(tail.to(tl.float32)))
                tl.store(ranges + row * 2 + 1, float("inf"))
                tl.store(counters + row, 0)
    if WITH_MASS:
        tl.store(pending + row, wide.to(tl.int32))
    tl.store(limits + row, limit)
