"""Top-k, top-p and min-p as one threshold for each row, without sorting.

1. A pass over all rows writes the largest value of each group of 16 or 128 neighbouring columns (`maxima_kernel`).
2. The k-th largest of these is a lower bound of the k-th largest value, since k tokens reach it. Fewer than k groups
   reach above it: one program a row looks at those, a few thousand columns, and finds the value among them, or it is
   the bound itself (`solve_kernel`). With top-p behind top-k, the nucleus ends among the fewer than k tokens above that
   value, or at it.
3. Rows with top-p alone need their whole mass: one more pass (`mass_kernel`). The bound is then the value above which
   the maxima alone make up the share.
4. Where the nucleus is too wide for that (flat rows: thousands of tokens), `threshold_wide` makes three more passes.

All is decided on the device; kernels leave rows that do not need them at once. Two kernels where every row has top-k,
or none has top-p; else seven. A search is one over the patterns of float32 in their order, each step of which cuts the
range into five. Masses that decide are whole numbers, so that a sum is the same in every order and a row's threshold in
every batch; their unit is 2^-45 of the most likely token's, so with a top-k of a whole vocabulary the share is right to
some 1e-9. Slow ways, right all the same, are left for a top-k of thousands and for flat rows of few different values:
one program reads its row ten times or so.
"""

from __future__ import annotations

import functools

import torch
import triton

from core.ops import reference
from plugin_triton.dependent import dependent
from plugin_triton.launch import Launch
from plugin_triton.ops.threshold_kernels import mass_kernel, maxima_kernel
from plugin_triton.ops.threshold_solve import solve_kernel
from plugin_triton.ops.threshold_steps import MAX_SPLITS
from plugin_triton.ops.threshold_wide import collect_kernel, finish_kernel, narrow_kernel

_BLOCK = 2048  # columns; parts of rows are multiples of it
_LANES, _CUT_LANES = 1024, 512  # columns at once where more is kept for each
_PROGRAMS = 2048
_NARROW_GROUP, _WIDE_GROUP = 16, 128
_WIDE_MAX_K = 64  # where groups are wide
_MAX_GROUPS = 8192  # of a row: one program looks at them at once
_LISTED = 4096  # columns of listed groups that one program looks at at once
_CAPACITY = 4096  # candidates of the nucleus
_CHUNK = 1024  # of them looked at at once


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
    size = scaled.shape[1]
    if scaled.dtype is not torch.float32 or scaled.stride(1) != 1 or not scaled.numel():
        return reference.sampling_threshold(
            scaled, top_k, top_p, min_p, max_k=max_k, any_without_k=any_without_k, any_top_p=any_top_p
        )
    with_mass = any_without_k and any_top_p
    how = (with_mass or max_k > 0, any_top_p, with_mass)
    types = (top_k.dtype, top_p.dtype, min_p.dtype)
    plan = _plan(scaled.device, types, size, scaled.stride(0), _group(size, max_k, with_mass), how, _CAPACITY)
    return plan(scaled, top_k, top_p, min_p)


def _group(size: int, max_k: int, with_mass: bool) -> int:
    """How many columns are one group. Small ones bound better; of large ones there are fewer to look at."""
    group = _NARROW_GROUP if with_mass or max_k > _WIDE_MAX_K else _WIDE_GROUP
    while -(-size // group) > _MAX_GROUPS:
        group *= 2
    return group


class _Plan:
    """The kernels for rows of one width. how: whether some rows have top-k, top-p, and top-p without top-k."""

    def __init__(
        self, device: torch.device, size: int, stride: int, group: int, how: tuple[bool, bool, bool], capacity: int
    ) -> None:
        self.device, self.number, self.size, self.capacity, self.how = device, device.index or 0, size, capacity, how
        self.block = max(group, min(_BLOCK, triton.next_power_of_2(size)))
        self.groups = -(-size // group)
        self.tile = triton.next_power_of_2(self.groups)
        pdl = dependent(device)
        row, chunk, shift = (stride, size), min(_CHUNK, capacity), 62 - size.bit_length()
        self.lanes = lanes = min(_LANES, self.block)
        self.cut_lanes = cut_lanes = min(_CUT_LANES, self.block)

        def launch(kernel: object, *constants: object, warps: int) -> Launch:
            return Launch(kernel, (*row, *constants, pdl), num_warps=max(1, warps), pdl=pdl)

        self.maxima = launch(maxima_kernel, self.block, group, warps=self.block // 512)
        self.mass = launch(mass_kernel, lanes, shift, warps=lanes // 256)
        self.solve = launch(
            solve_kernel, group, self.tile, max(1, _LISTED // group), capacity, chunk, shift, *how,
            warps=16 if self.tile > 2048 else 8,
        )  # fmt: skip
        self.narrow = [
            launch(narrow_kernel, cut_lanes, shift, first, warps=cut_lanes // 128) for first in (True, False)
        ]
        self.collect = launch(collect_kernel, lanes, capacity, shift, warps=lanes // 256)
        self.finish = launch(finish_kernel, capacity, chunk, shift, warps=4)

    def __call__(
        self, scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
    ) -> torch.Tensor:
        rows, number = scaled.shape[0], self.number
        blocks = -(-self.size // self.block)
        # Blocks of a part; a row has as many parts as keep the chip busy.
        each = -(-blocks // min(MAX_SPLITS.value, max(1, _PROGRAMS // rows)))
        splits = -(-blocks // each)
        tiles, cut_tiles = each * (self.block // self.lanes), each * (self.block // self.cut_lanes)
        _, with_p, with_mass = self.how
        maxima, tops, limits = self._floats(rows, self.groups), self._floats(rows, splits), self._floats(rows)
        ids = self._made(torch.int32, rows, self.tile)
        kept = self._floats(rows, self.capacity) if with_p else None
        weights = self._made(torch.int64, rows, self.capacity) if with_p else None
        self.maxima.start(number, rows, splits, 1, scaled, maxima, tops, splits, each)
        if not with_mass:
            self.solve.start(
                number, rows, 1, 1, scaled, top_k, top_p, min_p, maxima, None, ids, kept, weights, limits, None, None,
                None, splits,
            )  # fmt: skip
            return limits
        masses, exact, ends = (self._made(torch.int64, rows, splits, 2) for _ in range(3))
        pending, counters = (self._made(torch.int32, rows) for _ in range(2))
        ranges, parts = [self._floats(rows, 2) for _ in range(2)], [self._floats(rows, splits, 16) for _ in range(2)]
        self.mass.start(number, rows, splits, 1, scaled, top_k, top_p, tops, masses, splits, tiles)
        self.solve.start(
            number, rows, 1, 1, scaled, top_k, top_p, min_p, maxima, masses, ids, kept, weights, limits, pending,
            ranges[0], counters, splits,
        )  # fmt: skip
        known = (scaled, top_p, tops, masses, pending)
        self.narrow[0].start(number, rows, splits, 1, *known, None, None, ranges[0], parts[0], splits, cut_tiles)
        self.narrow[1].start(
            number, rows, splits, 1, *known, ranges[0], parts[0], ranges[1], parts[1], splits, cut_tiles
        )
        self.collect.start(
            number, rows, splits, 1, *known, ranges[1], parts[1], counters, kept, weights, exact, ends, splits, tiles
        )
        self.finish.start(number, rows, 1, 1, *known, counters, kept, weights, exact, ends, limits, splits)
        return limits

    def _made(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _floats(self, *shape: int) -> torch.Tensor:
        return self._made(torch.float32, *shape)


@functools.cache
def _plan(
    device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int, group: int,
    how: tuple[bool, bool, bool], capacity: int,
) -> _Plan:  # fmt: skip
    return _Plan(device, size, stride, group, how, capacity)
