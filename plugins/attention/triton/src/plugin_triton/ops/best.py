"""The best token of each row: of logits as they are, or with the sampler's noise."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch
from plugin_triton.ops.noise import log_exponential

# ruff: noqa: N803
_BLOCK = 2048
_PROGRAMS = 256  # enough to fill a chip: few rows are split over several programs
_MAX_SPLITS = 64


@triton.jit
def best_kernel(  # type: ignore[no-untyped-def]
    x, spread, keys, best, columns,
    STRIDE: tl.constexpr, SPREAD_STRIDE: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    NOISE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """best and columns [R, SPLITS]: the largest value of each part of each row of x [R, SIZE] (minus noise with NOISE)
    and the first column that has it. A NaN makes the value NaN. Grid (R, SPLITS)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    span: tl.constexpr = (SIZE + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
    lanes = split * span + tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.minimum(lanes, SIZE - 1)
    broken = tl.zeros([BLOCK], tl.int32)
    release(PDL)
    wait(PDL)
    if NOISE:
        first, second = tl.load(keys + row * 2), tl.load(keys + row * 2 + 1)
    for start in range(0, span, BLOCK):
        cols = lanes + start
        ok = cols < SIZE
        value = tl.load(x + row * STRIDE + cols, mask=ok, other=float("-inf")).to(tl.float32)
        if NOISE:
            words = tl.load(spread + row * SPREAD_STRIDE + cols, mask=ok, other=0)
            value = value - log_exponential(words, first, second)
        broken = broken | (value != value).to(tl.int32)
        better = value > largest
        largest = tl.where(better, value, largest)
        where = tl.where(better, cols, where)
    found = tl.max(largest, axis=0)
    column = tl.min(tl.where(largest == found, where, SIZE - 1), axis=0)
    found = tl.where(tl.max(broken, axis=0) > 0, float("nan"), found)
    tl.store(best + row * SPLITS + split, found.to(best.dtype.element_ty))
    tl.store(columns + row * SPLITS + split, column.to(tl.int64))


@triton.jit
def pick_kernel(  # type: ignore[no-untyped-def]
    part_best, part_columns, best, columns, SPLITS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """best and columns [R] out of the parts of each row [R, SPLITS]. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SPLITS)
    release(PDL)
    wait(PDL)
    values = tl.load(part_best + row * SPLITS + part)
    where = tl.load(part_columns + row * SPLITS + part)
    broken = values != values
    found = tl.max(tl.where(broken, float("-inf"), values), axis=0)
    last = tl.max(where, axis=0)
    column = tl.min(tl.where(values == found, where, last), axis=0)
    found = tl.where(tl.max(broken.to(tl.int32), axis=0) > 0, float("nan"), found)
    tl.store(best + row, found.to(best.dtype.element_ty))
    tl.store(columns + row, column)


def gumbel_argmax(scaled: torch.Tensor, spread: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """scaled [R, K] float32, spread [K] or [R, K] int32, keys [R, 2] int32 -> columns [R] int64."""
    words = spread.dtype is torch.int32 and keys.dtype is torch.int32
    if not (_takes(scaled) and words and spread.stride(-1) == 1 and keys.is_contiguous()):
        return reference.gumbel_argmax(scaled, spread, keys)
    return _best(scaled, spread, keys)[1]


def best_token(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [R, V] -> (largest [R] in their type, its column [R] int64)."""
    return _best(logits, None, None) if _takes(logits) else reference.best_token(logits)


def _takes(x: torch.Tensor) -> bool:
    return x.dim() == 2 and x.stride(1) == 1 and x.shape[1] > 0 and x.dtype in FLOATS


def _best(x: torch.Tensor, spread: torch.Tensor | None, keys: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, size = x.shape
    device = x.device
    best = torch.empty(num_rows, dtype=x.dtype, device=device)
    columns = torch.empty(num_rows, dtype=torch.int64, device=device)
    if not num_rows:
        return best, columns
    splits = min(_MAX_SPLITS, triton.next_power_of_2(-(-_PROGRAMS // num_rows)), _blocks(size))
    spread_stride = spread.stride(0) if spread is not None and spread.dim() == 2 else 0
    search, pick = _plan(x.dtype, device, size, x.stride(0), spread_stride, splits, spread is not None)
    number = x.get_device()
    if splits == 1:
        search.start(number, num_rows, 1, 1, x, spread, keys, best, columns)
        return best, columns
    part_best = torch.empty((num_rows, splits), dtype=torch.float32, device=device)
    part_columns = torch.empty((num_rows, splits), dtype=torch.int64, device=device)
    search.start(number, num_rows, splits, 1, x, spread, keys, part_best, part_columns)
    pick.start(number, num_rows, 1, 1, part_best, part_columns, best, columns)
    return best, columns


def _blocks(size: int) -> int:
    """The largest power of two of parts that leaves each a block to do."""
    return 1 << max(0, (size // _BLOCK).bit_length() - 1)


@functools.cache
def _plan(
    dtype: torch.dtype, device: torch.device, size: int, stride: int, spread_stride: int, splits: int, noise: bool
) -> tuple[Launch, Launch]:
    pdl = dependent(device)
    block = min(_BLOCK, triton.next_power_of_2(size))
    search = Launch(
        best_kernel, (stride, spread_stride, size, splits, block, noise, pdl), num_warps=max(1, min(8, block // 256)),
        enable_fp_fusion=False, pdl=pdl,
    )  # fmt: skip
    return search, Launch(pick_kernel, (splits, pdl), num_warps=1, pdl=pdl)
