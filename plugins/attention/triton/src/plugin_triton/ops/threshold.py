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

_BLOCK = 2048
_PROGRAMS = 2048
_MAX_SPLITS = 64
_WIDE_GROUP, _NARROW_GROUP = 128, 16
_WIDE_MAX_K = 64
_MAX_GROUPS = 8192  # that one program looks at at once
_LISTED = 4096  # columns of listed groups that one program looks at at once
_CAPACITY = 4096
_CHUNK = 1024


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
    return _plan(scaled.device, types, size, scaled.stride(0), splits, block, group, how)(scaled, top_k, top_p, min_p)


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
        how: tuple[bool, bool, bool],
    ) -> None:  # fmt: skip
        self.device, self.number, self.splits = device, device.index or 0, splits
        self.groups, self.how = -(-size // group), how
        self.tile = triton.next_power_of_2(self.groups)
        pdl = dependent(device)
        shift = 62 - size.bit_length()
        listed = max(1, _LISTED // group)
        self.maxima = Launch(
            maxima_kernel, (stride, size, splits, block, group, pdl), num_warps=max(1, block // 512), pdl=pdl
        )
        self.mass = Launch(
            mass_kernel, (stride, size, splits, block, shift, pdl), num_warps=max(1, block // 512), pdl=pdl
        )
        self.solve = Launch(
            solve_kernel,
            (stride, size, splits, group, self.tile, listed, _CAPACITY, min(_CHUNK, _CAPACITY), shift, *how, pdl),
            num_warps=8, pdl=pdl,
        )  # fmt: skip

    def __call__(
        self, scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
    ) -> torch.Tensor:
        num_rows, number, device = scaled.shape[0], self.number, self.device
        with_p, with_mass = self.how[1:]
        maxima = torch.empty((num_rows, self.groups), dtype=torch.float32, device=device)
        tops = torch.empty((num_rows, self.splits), dtype=torch.float32, device=device)
        ids = torch.empty((num_rows, self.tile), dtype=torch.int32, device=device)
        limits = torch.empty(num_rows, dtype=torch.float32, device=device)
        masses = kept = weights = None
        if with_p:
            kept = torch.empty((num_rows, _CAPACITY), dtype=torch.float32, device=device)
            weights = torch.empty((num_rows, _CAPACITY), dtype=torch.int64, device=device)
        self.maxima.start(number, num_rows, self.splits, 1, scaled, maxima, tops)
        if with_mass:
            masses = torch.empty((num_rows, self.splits), dtype=torch.int64, device=device)
            self.mass.start(number, num_rows, self.splits, 1, scaled, top_k, top_p, tops, masses)
        self.solve.start(
            number, num_rows, 1, 1, scaled, top_k, top_p, min_p, maxima, masses, ids, kept, weights, limits
        )
        return limits


@functools.cache
def _plan(
    device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int, splits: int, block: int, group: int,
    how: tuple[bool, bool, bool],
) -> _Plan:  # fmt: skip
    return _Plan(device, size, stride, splits, block, group, how)
