"""RMS norms: of rows, of sums with a residual, of heads. One pass where a row fits into registers."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch

# ruff: noqa: N803
_ONE_PASS = 16384  # longest row that is kept in registers
_TILE = 2048  # elements of short rows that share a program


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, y, total, eps, num_rows,
    SIZE: tl.constexpr, INNER: tl.constexpr, OUTER_STRIDE: tl.constexpr, INNER_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = rms_norm(x + residual) * weight and total = x + residual, contiguous both. Row r of x begins at
    r // INNER * OUTER_STRIDE + r % INNER * INNER_STRIDE. A program has ROWS rows, each within BLOCK."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    ok = (rows < num_rows)[:, None] & (cols < SIZE)[None, :]
    w = tl.load(weight + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
    starts = rows // INNER * OUTER_STRIDE + rows % INNER * INNER_STRIDE
    out = rows[:, None] * SIZE + cols[None, :]
    release(PDL)
    wait(PDL)
    v = tl.load(x + starts[:, None] + cols[None, :], mask=ok, other=0.0)
    if ADD:
        r = tl.load(residual + rows[:, None] * RESIDUAL_STRIDE + cols[None, :], mask=ok, other=0.0)
        v = (v.to(tl.float32) + r.to(tl.float32)).to(v.dtype)
        tl.store(total + out, v, mask=ok)
    wide = v.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / SIZE + eps)
    tl.store(y + out, (wide * scale[:, None] * w[None, :]).to(y.dtype.element_ty), mask=ok)


@triton.jit
def long_norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, y, total, eps,
    SIZE: tl.constexpr, INNER: tl.constexpr, OUTER_STRIDE: tl.constexpr, INNER_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same for rows of any length, each a program that goes over it twice."""
    row = tl.program_id(0).to(tl.int64)
    start = x + row // INNER * OUTER_STRIDE + row % INNER * INNER_STRIDE
    release(PDL)
    wait(PDL)
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        v = tl.load(start + cols, mask=cols < SIZE, other=0.0)
        if ADD:
            r = tl.load(residual + row * RESIDUAL_STRIDE + cols, mask=cols < SIZE, other=0.0)
            v = (v.to(tl.float32) + r.to(tl.float32)).to(v.dtype)
            tl.store(total + row * SIZE + cols, v, mask=cols < SIZE)
        squares += v.to(tl.float32) * v.to(tl.float32)
    scale = tl.rsqrt(tl.sum(squares) / SIZE + eps)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        v = tl.load(start + cols, mask=cols < SIZE, other=0.0)
        if ADD:
            r = tl.load(residual + row * RESIDUAL_STRIDE + cols, mask=cols < SIZE, other=0.0)
            v = (v.to(tl.float32) + r.to(tl.float32)).to(v.dtype)
        w = tl.load(weight + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
        tl.store(y + row * SIZE + cols, (v.to(tl.float32) * scale * w).to(y.dtype.element_ty), mask=cols < SIZE)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., H], weight [H]; also `qk_norm`, x [T, heads, D]."""
    if not 2 <= x.dim() <= 3 or x.stride(-1) != 1 or x.dtype not in FLOATS or weight.dtype is not x.dtype:
        return reference.rms_norm(x, weight, eps)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() == 2:
        _launch(x, None, weight, y, None, eps, x.shape[0], 1, x.stride(0), 0)
    else:
        _launch(x, None, weight, y, None, eps, x.shape[0] * x.shape[1], x.shape[1], x.stride(0), x.stride(1))
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, H] -> (rms_norm(x + residual), x + residual)."""
    dtype = x.dtype
    if (
        x.dim() != 2
        or x.stride(1) != 1
        or residual.shape != x.shape
        or residual.stride(1) != 1
        or dtype not in FLOATS
        or weight.dtype is not dtype
        or residual.dtype is not dtype
    ):
        return reference.add_rms_norm(x, residual, weight, eps)
    y, total = torch.empty((2, *x.shape), dtype=dtype, device=x.device)
    _launch(x, residual, weight, y, total, eps, x.shape[0], 1, x.stride(0), 0)
    return y, total


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    y: torch.Tensor,
    total: torch.Tensor | None,
    eps: float,
    num_rows: int,
    inner: int,
    outer_stride: int,
    inner_stride: int,
) -> None:
    if not num_rows:
        return
    size = x.shape[-1]
    stride = 0 if residual is None else residual.stride(0)
    plan = _plan(x.dtype, x.device, size, inner, outer_stride, inner_stride, stride, residual is not None)
    launch, rows = plan
    args = (x, residual, weight, y, total, eps)
    if rows:
        launch(x.get_device(), (-(-num_rows // rows), 1, 1), *args, num_rows)
    else:
        launch(x.get_device(), (num_rows, 1, 1), *args)


@functools.cache
def _plan(
    dtype: torch.dtype,
    device: torch.device,
    size: int,
    inner: int,
    outer_stride: int,
    inner_stride: int,
    residual_stride: int,
    add: bool,
) -> tuple[Launch, int]:
    """(the launch, rows of a program; 0 for the kernel of long rows)"""
    pdl = dependent(device)
    strides = (size, inner, outer_stride, inner_stride, residual_stride)
    if size > _ONE_PASS:
        return Launch(long_norm_kernel, (*strides, 4096, add, pdl), num_warps=8, pdl=pdl), 0
    block = triton.next_power_of_2(size)
    rows = max(1, min(8, _TILE // block)) if block <= 512 else 1
    warps = max(1, min(16, rows * block // 512))
    return Launch(norm_kernel, (*strides, rows, block, add, pdl), num_warps=warps, pdl=pdl), rows
