"""Top-k, top-p and min-p as one threshold for each row, without sorting.
"""

from __future__ import annotations

import functools

import torch
import triton

from core.ops import reference
from plugin_triton.dependent import dependent
from plugin_triton.launch import Launch
from plugin_triton.ops.threshold_kernels import mass_kernel, maxima_kernel, solve_kernel
from plugin_triton.ops.threshold_wide import collect_kernel, finish_kernel, narrow_kernel

_BLOCK = 2048
_PROGRAMS = 2048
_MAX_SPLITS = 64
_WIDE_GROUP, _NARROW_GROUP = 128, 16
_WIDE_MAX_K = 64
_MAX_GROUPS = 8192  # that one program looks at at once
_LISTED = 4096  # columns of listed groups that one program looks at at once
_CAPACITY = 4096
_CHUNK = 1024
_LANES = 1024


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
    with_mass = any_without_k and any_top_p
    group = _group(size, max_k, with_mass)
    block = max(group, min(_BLOCK, triton.next_power_of_2(size)))
    wanted, blocks = triton.next_power_of_2(-(-_PROGRAMS // num_rows)), triton.next_power_of_2(-(-size // block))
    splits = min(_MAX_SPLITS, wanted, blocks)
    types = (top_k.dtype, top_p.dtype, min_p.dtype)
    how = (max_k > 0, any_top_p, with_mass)
    plan = _plan(scaled.device, types, size, scaled.stride(0), splits, block, group, how, _CAPACITY)
    return plan(scaled, top_k, top_p, min_p)


def _group(size: int, max_k: int, with_mass: bool) -> int:
    """How many columns go by their largest one."""
    group = _NARROW_GROUP if with_mass or max_k > _WIDE_MAX_K else _WIDE_GROUP
    while -(-size // group) > _MAX_GROUPS:
        group *= 2
    return group


class _Plan:
    """The kernels for rows of one width in so many parts."""

    def __init__(
        self, device: torch.device, size: int, stride: int, splits: int, block: int, group: int,
        how: tuple[bool, bool, bool], capacity: int,
    ) -> None:  # fmt: skip
        self.device, self.number, self.splits = device, device.index or 0, splits
        self.groups, self.how = -(-size // group), how
        self.tile = triton.next_power_of_2(self.groups)
        pdl = dependent(device)
        shift = 62 - size.bit_length()
        listed = max(1, _LISTED // group)
        self.capacity = capacity
        chunk = min(_CHUNK, capacity)
        rows = (stride, size, splits)
        warps = max(1, block // 512)
        lanes = min(_LANES, block)
        most = max(1, lanes // 256)
        self.maxima = Launch(maxima_kernel, (*rows, block, group, pdl), num_warps=warps, pdl=pdl)
        self.mass = Launch(mass_kernel, (*rows, block, lanes, shift, pdl), num_warps=most, pdl=pdl)
        self.solve = Launch(
            solve_kernel, (*rows, group, self.tile, listed, capacity, chunk, shift, *how, pdl),
            num_warps=16 if self.tile > 2048 else 8, pdl=pdl,
        )
        few = min(_LANES // 2, block)
        self.narrow = [
            Launch(narrow_kernel, (*rows, block, few, shift, first, pdl), num_warps=max(1, few // 128), pdl=pdl)
            for first in (True, False)
        ]
        self.collect = Launch(
            collect_kernel, (*rows, block, lanes, capacity, shift, pdl), num_warps=most, pdl=pdl
        )
        self.finish = Launch(finish_kernel, (*rows, capacity, chunk, shift, pdl), num_warps=4, pdl=pdl)

    def __call__(
        self, scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
    ) -> torch.Tensor:
        rows, splits, number = scaled.shape[0], self.splits, self.number
        with_p, with_mass = self.how[1:]
        maxima, tops, limits = self._floats(rows, self.groups), self._floats(rows, splits), self._floats(rows)
        ids = self._made(torch.int32, rows, self.tile)
        kept = self._floats(rows, self.capacity) if with_p else None
        weights = self._made(torch.int64, rows, self.capacity) if with_p else None
        self.maxima.start(number, rows, splits, 1, scaled, maxima, tops)
        if not with_mass:
            self.solve.start(
                number, rows, 1, 1, scaled, top_k, top_p, min_p, maxima, None, ids, kept, weights, limits, None, None,
                None,
            )  # fmt: skip
            return limits
        masses, exact = self._made(torch.int64, rows, splits, 2), self._made(torch.int64, rows, splits, 2)
        ends, pending = self._made(torch.int64, rows, splits, 2), self._made(torch.int32, rows)
        counters = self._made(torch.int32, rows)
        ranges, parts = [self._floats(rows, 2) for _ in range(2)], [self._floats(rows, splits, 16) for _ in range(2)]
        self.mass.start(number, rows, splits, 1, scaled, top_k, top_p, tops, masses)
        self.solve.start(
            number, rows, 1, 1, scaled, top_k, top_p, min_p, maxima, masses, ids, kept, weights, limits, pending,
            ranges[0], counters,
        )  # fmt: skip
        known = (scaled, top_p, tops, masses, pending)
        self.narrow[0].start(number, rows, splits, 1, *known, None, None, ranges[0], parts[0])
        self.narrow[1].start(number, rows, splits, 1, *known, ranges[0], parts[0], ranges[1], parts[1])
        self.collect.start(
            number, rows, splits, 1, *known, ranges[1], parts[1], counters, kept, weights, exact, ends
        )
        self.finish.start(number, rows, 1, 1, *known, counters, kept, weights, exact, ends, limits)
        return limits

    def _made(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _floats(self, *shape: int) -> torch.Tensor:
        return self._made(torch.float32, *shape)


@functools.cache
def _plan(
    device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int, splits: int, block: int, group: int,
    how: tuple[bool, bool, bool], capacity: int,
) -> _Plan:  # fmt: skip
    return _Plan(device, size, stride, splits, block, group, how, capacity)
