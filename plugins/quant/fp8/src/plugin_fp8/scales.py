"""Arithmetic of the layouts, in plain PyTorch: quantizing, and the scales of a rank's share of a checkpoint.

weight = stored * scale. Whatever a checkpoint has a scale for (a tensor, a row, a block of rows and columns), a layer
keeps one for each row, or for each row and each group of neighbouring columns: then parts can be stacked, and rows be
shared over ranks, anywhere without changing a number. Groups of columns begin where a block begins or, where a rank's
first column lies inside a block, are the largest size that divides both.
"""

from __future__ import annotations

import math

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # number of e4m3
SMALLEST_SCALE = 1e-12  # of rows of zeros


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] -> (e4m3 [..., K], scale [..., 1] float32): each row's largest amount becomes the largest number."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return to_e4m3(wide / scale), scale


def quantize_groups(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (e4m3 [T, K], scale [T, ceil(K / group)] float32); the last group may be shorter."""
    rows, width = x.shape
    groups = -(-width // group)
    wide = torch.nn.functional.pad(x.float(), (0, groups * group - width)).view(rows, groups, group)
    scale = (wide.abs().amax(2, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return to_e4m3(wide / scale).view(rows, groups * group)[:, :width].contiguous(), scale.squeeze(2)


def to_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest, and to the largest number where it is beyond."""
    return x.clamp(-LARGEST, LARGEST).to(E4M3)


def spread(scale: torch.Tensor, group: int, width: int) -> torch.Tensor:
    """scale [..., G] -> [..., width]: each repeated for its `group` columns. One column is for all."""
    if scale.shape[-1] == 1:
        return scale.expand(*scale.shape[:-1], width)
    return scale.repeat_interleave(group, -1)[..., :width]


def column_group(block: int, first: int) -> int:
    """Columns of a rank's share that have a scale in common, if its first column is `first` of the checkpoint's."""
    return block if first % block == 0 else math.gcd(block, first)


def share_of_blocks(
    scale: torch.Tensor, block: tuple[int, int], rows: int, first_column: int, columns: int
) -> torch.Tensor:
    """scale [ceil(rows / block rows), ceil(K / block columns)] of a whole tensor -> [rows, G] for `columns` columns
    from `first_column` on, in groups of `column_group`."""
    group = column_group(block[1], first_column)
    starts = first_column + group * torch.arange(-(-columns // group))
    return scale.index_select(1, starts // block[1]).repeat_interleave(block[0], 0)[:rows]


def dequantize(weight: torch.Tensor, scale: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """weight [N, K] e4m3, scale [N, G] -> [N, K], rounded once."""
    return (weight.float() * spread(scale, group, weight.shape[1])).to(dtype)


def as_float(scale: torch.Tensor) -> torch.Tensor:
    """Scales as float32; those stored as bare exponents (e8m0, one byte) too."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - 127.0)
    return scale.float()
