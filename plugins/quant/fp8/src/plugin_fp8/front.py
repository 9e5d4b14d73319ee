"""What stands in front of a product with quantized inputs, in one kernel: sum, RMS norm, quantizing."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugin_fp8 import scales
from plugin_fp8.launch import Launch

# ruff: noqa: N803


class Front(NamedTuple):
    """stored [T, K] e4m3 with scale [T, G] float32; total [T, K]: the sum, x itself without a residual; normed [T, K]
    if it was asked for."""

    stored: torch.Tensor
    scale: torch.Tensor
    total: torch.Tensor
    normed: torch.Tensor | None


def norm_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, group: int, *,
    keep_normed: bool, pdl: bool,
) -> Front:  # fmt: skip
    """rms_norm(x + residual) * weight, quantized with a scale for each token (group 0) or `group` of its columns. x and
    residual [T, K], T > 0; a program takes a row. What the norm gives is rounded to x's dtype first, as where it stands
    alone."""
    if not x.is_contiguous():
        x = x.contiguous()
    if residual is not None and not residual.is_contiguous():
        residual = residual.contiguous()
    tokens, width = x.shape
    device = x.get_device()
    kinds = (x.dtype, weight.dtype, None if residual is None else residual.dtype)
    launch, groups = _plan(device, kinds, width, group, keep_normed, pdl)
    stored = torch.empty_like(x, dtype=scales.E4M3)
    scale = torch.empty((tokens, groups), dtype=torch.float32, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    normed = torch.empty_like(x) if keep_normed else None
    launch.start(
        device, tokens, 1, 1, x, x if residual is None else residual, weight, stored, scale, total,
        x if normed is None else normed, eps,
    )  # fmt: skip
    return Front(stored, scale, total, normed)


@functools.cache
def _plan(
    device: int, kinds: tuple[torch.dtype | None, ...], width: int, group: int, keep: bool, pdl: bool
) -> tuple[Launch, int]:
    """(the launch, groups of a row). kinds: types of x, the norm's weight and the residual, None without one."""
    block, groups = triton.next_power_of_2(width), -(-width // group) if group else 1
    constants = (
        width, groups, group, block, kinds[2] is not None, keep, pdl, scales.SMALLEST_SCALE, scales.LARGEST
    )  # fmt: skip
    return Launch(_front, constants, num_warps=max(1, min(16, block // 512)), pdl=pdl), groups


@triton.jit
def _front(  # type: ignore[no-untyped-def]
    x, residual, weight, stored, scale, total, normed, eps, K: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr, SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """One token. Only the norm's weight is read before the kernels in front have ended."""
    start = tl.program_id(0).to(tl.int64) * K
    cols = tl.arange(0, BLOCK)
    inside = cols < K
    w = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    v = tl.load(x + start + cols, mask=inside, other=0.0)
    kind = v.dtype
    if ADD:
        r = tl.load(residual + start + cols, mask=inside, other=0.0)
        v = (v.to(tl.float32) + r.to(tl.float32)).to(kind)
        tl.store(total + start + cols, v, mask=inside)
    wide = v.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide) / K + eps)
    rounded = (wide * factor * w).to(kind)
    if KEEP:
        tl.store(normed + start + cols, rounded, mask=inside)
    wide = rounded.to(tl.float32)
    row = tl.program_id(0).to(tl.int64) * GROUPS
    if GROUP:
        parts = tl.reshape(wide, (BLOCK // GROUP, GROUP))
        s = tl.maximum(tl.max(tl.abs(parts), axis=1) / LARGEST, SMALLEST)
        group = tl.arange(0, BLOCK // GROUP)
        tl.store(scale + row + group, s, mask=group < GROUPS)
        wide = tl.reshape(parts / s[:, None], (BLOCK,))
    else:
        s = tl.maximum(tl.max(tl.abs(wide)) / LARGEST, SMALLEST)
        tl.store(scale + row, s)
        wide = wide / s
    wide = tl.clamp(wide, -LARGEST, LARGEST)
    tl.store(stored + start + cols, wide.to(stored.dtype.element_ty), mask=inside)
