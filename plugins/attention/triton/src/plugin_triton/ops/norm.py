"""RMS norms: of rows, of sums with a residual, of heads. One pass where a row fits into registers."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch, empty_as

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
    shape = x.shape
    plan = _plan(x.device, x.dtype, weight.dtype, None, shape[1:], x.stride(), None)
    if plan is None:
        return reference.rms_norm(x, weight, eps)
    y = empty_as(x)
    num_rows = shape[0] if len(shape) == 2 else shape[0] * shape[1]
    if num_rows:
        launch, number, rows = plan
        if rows:
            launch.start(number, -(-num_rows // rows), 1, 1, x, None, weight, y, None, eps, num_rows)
        else:
            launch.start(number, num_rows, 1, 1, x, None, weight, y, None, eps)
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, H] -> (rms_norm(x + residual), x + residual)."""
    shape = x.shape
    plan = _plan(x.device, x.dtype, weight.dtype, residual.dtype, shape[1:], x.stride(), residual.stride())
    if plan is None or residual.shape != shape:
        return reference.add_rms_norm(x, residual, weight, eps)
    y = empty_as(x)
    total = empty_as(x)
    num_rows = shape[0]
    if num_rows:
        launch, number, rows = plan
        if rows:
            launch.start(number, -(-num_rows // rows), 1, 1, x, residual, weight, y, total, eps, num_rows)
        else:
            launch.start(number, num_rows, 1, 1, x, residual, weight, y, total, eps)
    return y, total


@functools.cache
def _plan(
    device: torch.device,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
    inner: tuple[int, ...],
    strides: tuple[int, ...],
    residual_strides: tuple[int, ...] | None,
) -> tuple[Launch, int, int] | None:
    """(the launch, the device's number, rows of a program: 0 for the kernel of long rows). For rows [size], or heads
    and their size, as `inner` says; None if the kernels do not take such arguments."""
    add = residual_strides is not None
    if (
        dtype not in FLOATS
        or weight_dtype is not dtype
        or (residual_dtype is not None and residual_dtype is not dtype)
        or not 1 <= len(inner) <= (1 if add else 2)
        or strides[-1] != 1
        or (residual_strides is not None and (len(residual_strides) != 2 or residual_strides[-1] != 1))
    ):
        return None
    size = inner[-1]
    pdl = dependent(device)
    heads = (1, strides[0], 0) if len(inner) == 1 else (inner[0], strides[0], strides[1])
    constants = (size, *heads, 0 if residual_strides is None else residual_strides[0])
    if size > _ONE_PASS:
        return Launch(long_norm_kernel, (*constants, 4096, add, pdl), num_warps=8, pdl=pdl), device.index or 0, 0
    block = triton.next_power_of_2(size)
    rows = max(1, min(8, _TILE // block)) if block <= 512 else 1
    warps = max(1, min(16, rows * block // 512))
    launch = Launch(norm_kernel, (*constants, rows, block, add, pdl), num_warps=warps, pdl=pdl)
    return launch, device.index or 0, rows
