"""Quantization of activations to 8-bit floats: one scale for a tensor, for each token, or for each group of columns."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import quantize as reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.interpreter import to_float8
from plugin_triton.launch import FLOATS, Launch

# ruff: noqa: N803
_ONE_PASS = 16384  # longest group that is kept in registers
_MAX = tl.constexpr(reference.FP8_MAX)
_MIN_SCALE = tl.constexpr(reference.MIN_SCALE)


@triton.jit
def _quotient(v, scale):  # type: ignore[no-untyped-def]
    """v * (1 / scale) within the range of the format, float32; the division rounded to nearest like the reference's."""
    return tl.minimum(tl.maximum(v * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale), -_MAX), _MAX)


@triton.jit(do_not_specialize=["num_rows"])
def group_kernel(  # type: ignore[no-untyped-def]
    x, q, scales, num_rows,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [T, SIZE], rows STRIDE apart -> q [T, SIZE] and scales [T, NUM_GROUPS]. Grid (cdiv(T, ROWS), NUM_GROUPS); a
    program has one group of ROWS rows, within BLOCK."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    group = tl.program_id(1)
    member = tl.arange(0, BLOCK)
    cols = group * GROUP + member
    rows_ok = rows < num_rows
    ok = rows_ok[:, None] & ((member < GROUP) & (cols < SIZE))[None, :]
    release(PDL)
    wait(PDL)
    v = tl.load(x + rows[:, None] * STRIDE + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(v), axis=1), _MAX), _MIN_SCALE)
    tl.store(
        q + rows[:, None] * SIZE + cols[None, :], to_float8(_quotient(v, scale[:, None]), q.dtype.element_ty), mask=ok
    )
    tl.store(scales + rows * NUM_GROUPS + group, scale, mask=rows_ok)


@triton.jit
def long_token_kernel(  # type: ignore[no-untyped-def]
    x, q, scales, SIZE: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """The same with one group a row, for rows of any length: one row a program, which goes over it twice."""
    row = tl.program_id(0).to(tl.int64)
    release(PDL)
    wait(PDL)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        v = tl.load(x + row * STRIDE + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(v))
    scale = tl.maximum(tl.div_rn(tl.max(largest, axis=0), _MAX), _MIN_SCALE)
    tl.store(scales + row, scale)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        v = tl.load(x + row * STRIDE + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
        tl.store(q + row * SIZE + cols, to_float8(_quotient(v, scale), q.dtype.element_ty), mask=cols < SIZE)


@triton.jit
def largest_kernel(  # type: ignore[no-untyped-def]
    x, largest, SIZE: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """largest [T] = the largest magnitude of each row. Grid (T,)."""
    row = tl.program_id(0).to(tl.int64)
    release(PDL)
    wait(PDL)
    found = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        v = tl.load(x + row * STRIDE + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
        found = tl.maximum(found, tl.abs(v))
    tl.store(largest + row, tl.max(found, axis=0))


@triton.jit
def scaled_kernel(  # type: ignore[no-untyped-def]
    x, q, scale, SIZE: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """q [T, SIZE] = x / scale[0]. Grid (T, cdiv(SIZE, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    release(PDL)
    wait(PDL)
    v = tl.load(x + row * STRIDE + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
    tl.store(q + row * SIZE + cols, to_float8(_quotient(v, tl.load(scale)), q.dtype.element_ty), mask=cols < SIZE)


def quantize_fp8_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (q [T, K], scale [T, 1] float32)."""
    found = _grouped(x, 0)
    if found is not None:
        return found
    if not _takes(x):
        return reference.quantize_fp8_token(x)
    size = x.shape[1]
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    if x.shape[0]:
        _plan(long_token_kernel, x.dtype, x.device, (size, x.stride(0), 4096)).start(
            x.get_device(), x.shape[0], 1, 1, x, q, scale
        )
    return q, scale


def quantize_fp8_group(x: torch.Tensor, group: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (q [T, K], scale [T, ceil(K / group)] float32)."""
    found = _grouped(x, group)
    return reference.quantize_fp8_group(x, group) if found is None else found


def quantize_fp8_tensor(x: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (q [T, K], scale [1] float32)."""
    if not _takes(x) or not x.shape[0] or (scale is not None and scale.dtype is not torch.float32):
        return reference.quantize_fp8_tensor(x, scale)
    num_rows, size = x.shape
    if scale is None:
        largest = torch.empty(num_rows, dtype=torch.float32, device=x.device)
        shape = (size, x.stride(0), min(4096, triton.next_power_of_2(size)))
        _plan(largest_kernel, x.dtype, x.device, shape).start(x.get_device(), num_rows, 1, 1, x, largest)
        scale = reference.scale_of(largest.amax()).view(1)
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    block = min(2048, triton.next_power_of_2(size))
    _plan(scaled_kernel, x.dtype, x.device, (size, x.stride(0), block)).start(
        x.get_device(), num_rows, -(-size // block), 1, x, q, scale
    )
    return q, scale


def _takes(x: torch.Tensor) -> bool:
    """Whether the kernels know these numbers and this device's 8-bit floats are the format's."""
    return x.dim() == 2 and x.stride(1) == 1 and x.shape[1] > 0 and x.dtype in FLOATS and _has_format(x.device)


@functools.cache
def _has_format(device: torch.device) -> bool:
    if device.type != "cuda":
        return True  # the interpreter
    if torch.version.hip is not None:  # before gfx950 a format of AMD's own, with other infinities and another bias
        return "gfx942" not in torch.cuda.get_device_properties(device).gcnArchName
    return torch.cuda.get_device_capability(device) >= (8, 9)


def _grouped(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Of `group` columns each, 0 for all; None if the kernel does not take it."""
    shape = x.shape
    num_rows = shape[0]
    plan = _group_plan(x.dtype, x.device, shape[1:], x.stride(), group, num_rows >= 16)
    if plan is None:
        return None
    launch, rows, num_groups, number = plan
    q = torch.empty(shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((num_rows, num_groups), dtype=torch.float32, device=x.device)
    if num_rows:
        launch.start(number, -(-num_rows // rows), num_groups, 1, x, q, scales, num_rows)
    return q, scales


@functools.cache
def _group_plan(
    dtype: torch.dtype, device: torch.device, width: tuple[int, ...], strides: tuple[int, ...], group: int, many: bool
) -> tuple[Launch, int, int, int] | None:
    """(the launch, rows of a program, groups of a row, the device's number). many: rows, 16 or more."""
    if len(width) != 1 or strides[1] != 1 or not width[0] or dtype not in FLOATS or not _has_format(device):
        return None
    (size,) = width
    group = group or size
    if group > _ONE_PASS:
        return None
    block = triton.next_power_of_2(group)
    rows, num_groups = max(1, 2048 // block) if many else 1, -(-size // group)
    launch = _plan(group_kernel, dtype, device, (size, strides[0], group, num_groups, rows, block))
    return launch, rows, num_groups, device.index or 0


@functools.cache
def _plan(kernel: object, dtype: torch.dtype, device: torch.device, constants: tuple[int, ...]) -> Launch:
    pdl = dependent(device)
    tile = constants[-1] * (constants[-2] if kernel is group_kernel else 1)
    return Launch(kernel, (*constants, pdl), num_warps=max(1, min(16, tile // 512)), pdl=pdl)
