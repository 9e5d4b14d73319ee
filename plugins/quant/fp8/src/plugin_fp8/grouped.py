"""Products of e4m3 matrices whose columns have a scale for each group: of inputs by token, of weights by row.

A step of the loop is one group, so that its sum is scaled once, in float32 (DeepSeek-V3, arXiv:2412.19437, 3.3).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from plugin_fp8.launch import Launch

# ruff: noqa: N803

_BAND = 8  # blocks of rows that are walked together, for the second-level cache


def tile_for(tokens: int) -> tuple[int, int, int, int]:
    """(rows of inputs, rows of weights, warps, stages)."""
    if tokens <= 64:
        return (16 if tokens <= 16 else 32 if tokens <= 32 else 64), 64, 4, 4
    return (64, 128, 4, 4) if tokens <= 256 else (128, 128, 8, 4)


def run(
    x: torch.Tensor, scale_x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, group: int,
    bias: torch.Tensor | None, y: torch.Tensor, tile: tuple[int, int, int, int] | None = None,
) -> None:  # fmt: skip
    """y [T, N] = x [T, K] times weight [N, K], both e4m3, scales [T, G] and [N, G] of `group` columns each."""
    tokens, columns = x.shape
    block_t, block_n, warps, stages = tile or tile_for(tokens)
    rows = weight.shape[0]
    programs = -(-tokens // block_t) * -(-rows // block_n)
    device, strides = x.get_device(), scale_x.stride()
    kinds = (y.dtype, None if bias is None else bias.dtype)
    launch = _plan(device, kinds, strides, rows, columns, scale.shape[1], group, block_t, block_n, warps, stages)
    launch.start(device, programs, 1, 1, x, scale_x, weight, scale, bias, y, tokens, *strides)


@functools.cache
def _plan(
    device: int, kinds: tuple[torch.dtype | None, ...], strides: tuple[int, ...], rows: int, columns: int, groups: int,
    group: int, block_t: int, block_n: int, warps: int, stages: int,
) -> Launch:  # fmt: skip
    """kinds: types of what differs between calls; no bias has none."""
    constants = (rows, columns, groups, group, block_t, block_n, _BAND, kinds[1] is not None)
    return Launch(_grouped, constants, num_warps=warps, num_stages=stages)


@triton.jit(do_not_specialize=["tokens"])
def _grouped(  # type: ignore[no-untyped-def]
    x, scale_x, weight, scale, bias, y, tokens, stride_t, stride_g, N: tl.constexpr, K: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BAND: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(tokens, BLOCK_T)
    down: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    number = tl.program_id(0)
    first = number // (BAND * down) * BAND
    height = tl.minimum(across - first, BAND)
    block_t = first + number % (BAND * down) % height
    block_n = number % (BAND * down) // height
    token = block_t * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    token_ok, rows_ok = token < tokens, rows < N
    cols = tl.arange(0, GROUP)
    token_at = x + token.to(tl.int64)[:, None] * K
    rows_at = weight + rows.to(tl.int64)[None, :] * K
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for group in range(GROUPS):
        at = group * GROUP + cols
        a = tl.load(token_at + at[None, :], mask=token_ok[:, None] & (at < K)[None, :], other=0.0)
        b = tl.load(rows_at + at[:, None], mask=rows_ok[None, :] & (at < K)[:, None], other=0.0)
        sa = tl.load(scale_x + token.to(tl.int64) * stride_t + group * stride_g, mask=token_ok, other=0.0)
        sb = tl.load(scale + rows * GROUPS + group, mask=rows_ok, other=0.0)
        acc += tl.dot(a, b) * sa[:, None] * sb[None, :]
    if BIAS:
        acc += tl.load(bias + rows, mask=rows_ok, other=0.0).to(tl.float32)[None, :]
    out = y + token.to(tl.int64)[:, None] * N + rows[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=token_ok[:, None] & rows_ok[None, :])
