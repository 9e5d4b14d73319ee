"""Kernels of `threshold`, which says what they do together."""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.dependent import release, wait
from plugin_triton.ops.noise import exp, log

# ruff: noqa: N803
_LANES = tl.constexpr(16)
_LEAST, _MOST = tl.constexpr(-2147483648), tl.constexpr(2147483647)


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
def _bound(low, high, number):  # type: ignore[no-untyped-def]
    """The value `number` of 16 from `low` up, none above `high`; orders as int64."""
    return tl.minimum(low + number * ((high - low + 15) // 16), high)


@triton.jit
def _sums(parts, number, row, num_rows, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """What pass `number` found at or above each of its 16 values, [16] float64."""
    places = tl.arange(0, SPLITS)[:, None] * _LANES + tl.arange(0, _LANES)[None, :]
    return tl.sum(tl.load(parts + (number * num_rows + row) * (SPLITS * _LANES) + places), axis=0)


@triton.jit
def _narrowed(bounds, number, row, num_rows, sums, enough):  # type: ignore[no-untyped-def]
    """The bounds of pass `number` after it: the largest value that had enough, and the last before one that had not."""
    at = bounds + (number * num_rows + row) * 2
    low, high = tl.load(at), tl.load(at + 1)
    lanes = tl.arange(0, _LANES)
    count = tl.sum(((sums >= enough) & (lanes > 0)).to(tl.int64), axis=0)
    new_low = tl.where(count > 0, _bound(low, high, count), low)
    new_high = tl.where(count < 15, _bound(low, high, count + 1) - 1, high)
    return new_low, tl.maximum(new_low, new_high)


@triton.jit
def _range(extremes, row, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(lowest, highest) order of a row, int64."""
    places = (row * SPLITS + tl.arange(0, SPLITS)) * 2
    low, high = tl.load(extremes + places), tl.load(extremes + places + 1)
    return tl.min(low, axis=0).to(tl.int64), tl.max(high, axis=0).to(tl.int64)


@triton.jit
def extremes_kernel(  # type: ignore[no-untyped-def]
    scaled, extremes, STRIDE: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """extremes [R, SPLITS, 2] int32: lowest and highest order of each part of a row. Grid (R, SPLITS), as all here."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    span: tl.constexpr = (SIZE + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
    lowest = tl.full([BLOCK], _MOST, tl.int32)
    highest = tl.full([BLOCK], _LEAST, tl.int32)
    release(PDL)
    wait(PDL)
    for start in range(0, span, BLOCK):
        cols = split * span + start + tl.arange(0, BLOCK)
        ok = cols < SIZE
        order = _order(tl.load(scaled + row * STRIDE + cols, mask=ok, other=0.0))
        lowest = tl.minimum(lowest, tl.where(ok, order, _MOST))
        highest = tl.maximum(highest, tl.where(ok, order, _LEAST))
    at = extremes + (row * SPLITS + split) * 2
    tl.store(at, tl.min(lowest, axis=0))
    tl.store(at + 1, tl.max(highest, axis=0))


@triton.jit(do_not_specialize=["number", "num_rows"])
def search_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, extremes, bounds, parts, masses, floors, number, num_rows,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, MASS: tl.constexpr,
    STEP: tl.constexpr, AFTER_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Pass `number`: bounds [passes, R, 2] int64 before it, and parts [passes, R, SPLITS, 16] float64, what lies at or
    above each of 16 values between them: tokens, or with MASS probabilities in units of the most likely one's.

    STEP: 0, 1 or 2 for the first, second and later passes of a search. AFTER_K: the first pass for top-p follows a
    search for top-k, whose result is the lowest value to look at, floors [R]; masses [R]: what lies above it.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    span: tl.constexpr = (SIZE + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
    release(PDL)
    wait(PDL)
    least, most = _range(extremes, row, SPLITS)
    low, high = least, most
    if STEP == 0:
        if AFTER_K:
            k = tl.load(top_k + row)
            sums = _sums(parts, number - 1, row, num_rows, SPLITS)
            kth, _ = _narrowed(bounds, number - 1, row, num_rows, sums, tl.minimum(k, SIZE).to(tl.float64))
            low = tl.where(k > 0, kth, least)
        if MASS and split == 0:
            tl.store(floors + row, low)
    else:
        sums = _sums(parts, number - 1, row, num_rows, SPLITS)
        if MASS:
            if STEP == 1:
                mass = tl.sum(tl.where(tl.arange(0, _LANES) == 0, sums, 0.0), axis=0)
                if split == 0:
                    tl.store(masses + row, mass)
            else:
                mass = tl.load(masses + row)
            enough = tl.load(top_p + row) * mass
        else:
            enough = tl.minimum(tl.load(top_k + row), SIZE).to(tl.float64)
        low, high = _narrowed(bounds, number - 1, row, num_rows, sums, enough)
    if split == 0:
        at = bounds + (number * num_rows + row) * 2
        tl.store(at, low)
        tl.store(at + 1, high)
    lanes = tl.arange(0, _LANES)
    limits = _bound(low, high, lanes.to(tl.int64)).to(tl.int32)
    best = _value(most.to(tl.int32))
    above = tl.zeros([_LANES], tl.float32)
    for start in range(0, span, BLOCK):
        cols = split * span + start + tl.arange(0, BLOCK)
        ok = cols < SIZE
        x = tl.load(scaled + row * STRIDE + cols, mask=ok, other=0.0)
        weight = tl.where(ok, tl.exp(x - best), 0.0) if MASS else tl.where(ok, 1.0, 0.0)
        above += tl.sum(tl.where(_order(x)[:, None] >= limits[None, :], weight[:, None], 0.0), axis=0)
    tl.store(parts + ((number * num_rows + row) * SPLITS + split) * _LANES + lanes, above.to(tl.float64))


@triton.jit
def _moved(edge_parts, edges, number, row, num_rows, share, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The edge of the nucleus after look `number` at it, int64: one value up or down, or where it was."""
    places = tl.arange(0, SPLITS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    field = tl.arange(0, 4)
    sums = tl.sum(tl.load(edge_parts + (number * num_rows + row) * (SPLITS * 4) + places), axis=0)
    over = tl.sum(tl.where(field == 0, sums, 0.0), axis=0)
    equal = tl.sum(tl.where(field == 1, sums, 0.0), axis=0)
    enough = share * tl.sum(tl.where(field == 2, sums, 0.0), axis=0)
    near = edges + ((number * num_rows + row) * SPLITS + tl.arange(0, SPLITS)) * 4
    found = tl.max(tl.load(near), axis=0)
    up, down = tl.min(tl.load(near + 1), axis=0), tl.max(tl.load(near + 2), axis=0)
    found = tl.where((over >= enough) & (up < 1 << 40), up, found)
    return tl.where((over + equal < enough) & (down > -(1 << 40)), down, found)


@triton.jit(do_not_specialize=["last_pass", "number", "num_rows"])
def edge_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, extremes, bounds, parts, masses, floors, edge_parts, edges, last_pass, number, num_rows,
    STRIDE: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Look `number` at the edge of the nucleus: edge_parts [looks, R, SPLITS, 4] float64, what lies above it, at it,
    and in all; edges [looks, R, SPLITS, 4] int64, itself and the next values above and below it in the part."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    span: tl.constexpr = (SIZE + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
    release(PDL)
    wait(PDL)
    _, most = _range(extremes, row, SPLITS)
    share = tl.load(top_p + row)
    floor = tl.load(floors + row)
    if FIRST:
        sums = _sums(parts, last_pass, row, num_rows, SPLITS)
        found, _ = _narrowed(bounds, last_pass, row, num_rows, sums, share * tl.load(masses + row))
    else:
        found = _moved(edge_parts, edges, number - 1, row, num_rows, share, SPLITS)
    best = _value(most.to(tl.int32))
    with_k = tl.load(top_k + row) > 0
    over = tl.zeros([BLOCK], tl.float64)
    equal = tl.zeros([BLOCK], tl.float64)
    mass = tl.zeros([BLOCK], tl.float64)
    up = tl.full([BLOCK], 1 << 40, tl.int64)
    down = tl.full([BLOCK], -(1 << 40), tl.int64)
    for start in range(0, span, BLOCK):
        cols = split * span + start + tl.arange(0, BLOCK)
        ok = cols < SIZE
        x = tl.load(scaled + row * STRIDE + cols, mask=ok, other=0.0)
        order = _order(x).to(tl.int64)
        kept = ok & (order >= floor)
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            fine = tl.exp((x - best).to(tl.float64))
            # A row without top-k is measured by the sum that the reference takes, of float32 exponentials: the same
            # ones, or where the share ends within their errors the edge would be another token.
            whole = tl.where(with_k, fine, exp(x - best).to(tl.float64))
            over += tl.where(kept & (order > found), fine, 0.0)
            equal += tl.where(kept & (order == found), fine, 0.0)
            mass += tl.where(kept, whole, 0.0)
            up = tl.minimum(up, tl.where(kept & (order > found), order, 1 << 40))
            down = tl.maximum(down, tl.where(kept & (order < found), order, -(1 << 40)))
    at = edge_parts + ((number * num_rows + row) * SPLITS + split) * 4
    tl.store(at, tl.sum(over, axis=0))
    tl.store(at + 1, tl.sum(equal, axis=0))
    tl.store(at + 2, tl.sum(mass, axis=0))
    tl.store(at + 3, 0.0)
    near = edges + ((number * num_rows + row) * SPLITS + split) * 4
    tl.store(near, found)
    tl.store(near + 1, tl.min(up, axis=0))
    tl.store(near + 2, tl.max(down, axis=0))


@triton.jit(do_not_specialize=["last_pass", "last_look", "num_rows"])
def limit_kernel(  # type: ignore[no-untyped-def]
    top_k, top_p, min_p, extremes, bounds, parts, floors, edge_parts, edges, limits, last_pass, last_look, num_rows,
    SIZE: tl.constexpr, SPLITS: tl.constexpr, WITH_K: tl.constexpr, WITH_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """limits [R]: the largest of three thresholds. Grid (R,). last_pass: of the last search; last_look: at edges."""
    row = tl.program_id(0).to(tl.int64)
    release(PDL)
    wait(PDL)
    _, most = _range(extremes, row, SPLITS)
    best = _value(most.to(tl.int32))
    k, share, least_share = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    limit = tl.where(least_share > 0, best + log(tl.where(least_share > 0, least_share, 1.0)), float("-inf"))
    if WITH_K:
        if WITH_P:
            kth = tl.load(floors + row)
        else:
            sums = _sums(parts, last_pass, row, num_rows, SPLITS)
            kth, _ = _narrowed(bounds, last_pass, row, num_rows, sums, tl.minimum(k, SIZE).to(tl.float64))
        limit = tl.maximum(limit, tl.where(k > 0, _value(kth.to(tl.int32)), float("-inf")))
    if WITH_P:
        found = _moved(edge_parts, edges, last_look, row, num_rows, share, SPLITS)
        edge = tl.where(share > 0, _value(found.to(tl.int32)), best)
        limit = tl.maximum(limit, tl.where(share < 1.0, edge, float("-inf")))
    tl.store(limits + row, limit)
