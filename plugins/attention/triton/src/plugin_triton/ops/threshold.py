"""Top-k, top-p and min-p as one threshold for each row, without sorting.

Both the k-th largest logit and the edge of the nucleus are "the largest value v such that what lies at or above v is
enough": k tokens, or the share top_p of the probability. So each is a search over the values, that is over the 2^32
patterns of float32 in their order. A pass over the rows adds up what lies above each of 15 values between two bounds,
so eight passes find the one. Rows are split over many programs; each program of the next pass adds their sums in the
same order and narrows the bounds by itself. Probabilities are summed in float32 while searching; the value found is put
right in float64, where it can be off by a value or two.
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
_BLOCK = 1024
_PROGRAMS = 512
_MAX_SPLITS = 64
_PASSES = 8  # of 4 bits each
_EDGES = 2
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
            # A row without top-k is measured by the sum that the reference takes, of float32 exponentials.
            whole = tl.where(with_k, fine, tl.exp(x - best).to(tl.float64))
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
    num_rows, size = scaled.shape
    if scaled.dtype is not torch.float32 or scaled.stride(1) != 1 or not scaled.numel():
        return reference.sampling_threshold(
            scaled, top_k, top_p, min_p, max_k=max_k, any_without_k=any_without_k, any_top_p=any_top_p
        )
    wanted, blocks = triton.next_power_of_2(-(-_PROGRAMS // num_rows)), triton.next_power_of_2(-(-size // _BLOCK))
    splits = min(_MAX_SPLITS, wanted, blocks)
    types = (top_k.dtype, top_p.dtype, min_p.dtype)
    return _plan(scaled.device, types, size, scaled.stride(0), splits)(
        scaled, top_k, top_p, min_p, with_k=max_k > 0, with_p=any_top_p
    )


class _Plan:
    """The kernels for rows of one width in so many parts."""

    def __init__(self, device: torch.device, size: int, stride: int, splits: int) -> None:
        self.device, self.number, self.splits = device, device.index or 0, splits
        pdl = dependent(device)
        block = min(_BLOCK, triton.next_power_of_2(size))
        shape = (stride, size, splits, block)
        warps = max(1, block // 128)
        self.extremes = Launch(extremes_kernel, (*shape, pdl), num_warps=warps, pdl=pdl)
        self.searches = {
            (mass, step, after_k): Launch(search_kernel, (*shape, mass, step, after_k, pdl), num_warps=warps, pdl=pdl)
            for mass in (False, True)
            for step in (0, 1, 2)
            for after_k in (False, True)
        }
        self.edges = {
            first: Launch(edge_kernel, (*shape, first, pdl), num_warps=warps, pdl=pdl) for first in (False, True)
        }
        self.limits = {
            (with_k, with_p): Launch(limit_kernel, (size, splits, with_k, with_p, pdl), num_warps=1, pdl=pdl)
            for with_k in (False, True)
            for with_p in (False, True)
        }

    def __call__(
        self,
        scaled: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        *,
        with_k: bool,
        with_p: bool,
    ) -> torch.Tensor:
        num_rows, splits, number = scaled.shape[0], self.splits, self.number
        grid, passes = (num_rows, splits, 1), _PASSES * (with_k + with_p)
        words, wide = {"dtype": torch.int64, "device": self.device}, {"dtype": torch.float64, "device": self.device}
        extremes = torch.empty((num_rows, splits, 2), dtype=torch.int32, device=self.device)
        bounds, parts = torch.empty((passes, num_rows, 2), **words), torch.empty((passes, num_rows, splits, 16), **wide)
        masses, floors = torch.empty(num_rows, **wide), torch.empty(num_rows, **words)
        looks = (_EDGES if with_p else 0, num_rows, splits, 4)
        edge_parts, edges = torch.empty(looks, **wide), torch.empty(looks, **words)
        limits = torch.empty(num_rows, dtype=torch.float32, device=self.device)
        self.extremes(number, grid, scaled, extremes)
        for index in range(passes):
            mass = with_p and index >= passes - _PASSES
            step = min(2, index % _PASSES)
            search = self.searches[mass, step, mass and with_k]
            search(number, grid, scaled, top_k, top_p, extremes, bounds, parts, masses, floors, index, num_rows)
        for look in range(looks[0]):
            self.edges[look == 0](
                number, grid, scaled, top_k, top_p, extremes, bounds, parts, masses, floors, edge_parts, edges,
                passes - 1, look, num_rows,
            )  # fmt: skip
        self.limits[with_k, with_p](
            number, (num_rows, 1, 1), top_k, top_p, min_p, extremes, bounds, parts, floors, edge_parts, edges, limits,
            passes - 1, looks[0] - 1, num_rows,
        )  # fmt: skip
        return limits


@functools.cache
def _plan(device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int, splits: int) -> _Plan:
    return _Plan(device, size, stride, splits)
