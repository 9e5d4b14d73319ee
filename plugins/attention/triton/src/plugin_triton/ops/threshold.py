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

from core.ops import reference
from plugin_triton.dependent import dependent
from plugin_triton.launch import Launch
from plugin_triton.ops.threshold_kernels import edge_kernel, extremes_kernel, limit_kernel, search_kernel

_BLOCK = 1024
_PROGRAMS = 512
_MAX_SPLITS = 64
_PASSES = 8  # of 4 bits each
_EDGES = 2  # looks at the edge of the nucleus


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
        passes = _PASSES * (with_k + with_p)
        words, wide = {"dtype": torch.int64, "device": self.device}, {"dtype": torch.float64, "device": self.device}
        extremes = torch.empty((num_rows, splits, 2), dtype=torch.int32, device=self.device)
        bounds, parts = torch.empty((passes, num_rows, 2), **words), torch.empty((passes, num_rows, splits, 16), **wide)
        masses, floors = torch.empty(num_rows, **wide), torch.empty(num_rows, **words)
        looks = (_EDGES if with_p else 0, num_rows, splits, 4)
        edge_parts, edges = torch.empty(looks, **wide), torch.empty(looks, **words)
        limits = torch.empty(num_rows, dtype=torch.float32, device=self.device)
        self.extremes.start(number, num_rows, splits, 1, scaled, extremes)
        for index in range(passes):
            mass = with_p and index >= passes - _PASSES
            step = min(2, index % _PASSES)
            search = self.searches[mass, step, mass and with_k]
            search.start(
                number, num_rows, splits, 1, scaled, top_k, top_p, extremes, bounds, parts, masses, floors, index,
                num_rows,
            )  # fmt: skip
        for look in range(looks[0]):
            self.edges[look == 0].start(
                number, num_rows, splits, 1, scaled, top_k, top_p, extremes, bounds, parts, masses, floors, edge_parts,
                edges, passes - 1, look, num_rows,
            )  # fmt: skip
        self.limits[with_k, with_p].start(
            number, num_rows, 1, 1, top_k, top_p, min_p, extremes, bounds, parts, floors, edge_parts, edges, limits,
            passes - 1, looks[0] - 1, num_rows,
        )  # fmt: skip
        return limits


@functools.cache
def _plan(device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int, splits: int) -> _Plan:
    return _Plan(device, size, stride, splits)
