"""Few tokens times an e4m3 weight, both sides quantized.

All that counts is how fast the weight comes: each of its bytes is read once and goes to the matrix unit as it is, and
the first of them are asked for before the kernel in front has ended (programmatic dependent launch; nothing but
constants is touched before `gdc_wait`). The weight is the left operand, since the matrix unit wants 64 rows there and
the tokens are few. Where there are too few blocks of its rows to keep the memory busy, the columns are split over
programs; the one that arrives last adds the parts in their order, so the sum does not depend on who was first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugin_fp8.launch import Launch

# ruff: noqa: N803

_ROWS = 64
_MANY_BLOCKS = 264  # of rows, two for each processor of an H200: no split


@dataclass(frozen=True, slots=True)
class Tile:
    """rows, columns: of the weight in one step of a program. split: programs that share a block's columns. ahead: steps
    whose memory is asked for before the kernel in front has ended."""

    rows: int
    columns: int
    warps: int
    stages: int
    split: int
    ahead: int = 2


@functools.cache
def tile_for(tokens: int, rows: int, columns: int, group: int) -> Tile:
    """As measured on an H200 for the layers of Llama-3.1-8B (`evaluation/gpu.py`)."""
    wide = group or 256
    if triton.cdiv(rows, _ROWS) >= _MANY_BLOCKS or columns <= 2 * wide:
        return Tile(_ROWS, min(wide, 128), 4, 5, 1)
    split = 4 if columns >= 8192 and tokens <= 32 else 2
    return Tile(_ROWS, wide, 4, 4 if wide > 128 else 5, split)


def run(
    tile: Tile, x: torch.Tensor, scale_x: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, group: int,
    bias: torch.Tensor | None, y: torch.Tensor, scratch: tuple[torch.Tensor, torch.Tensor] | None, *, pdl: bool,
) -> None:  # fmt: skip
    """y [T, N] = x [T, K] times stored [N, K], plus bias; both e4m3, with scale_x [T, G] and scale [N, G] for each
    group of columns (group 0: G = 1, all of them). scratch: as large as `needs` says where the tile is split, its
    counters zero; they are zero again afterwards."""
    tokens, columns = x.shape
    rows, groups = scale.shape
    assert tile.split == 1 or scratch is not None
    parts, arrived = scratch or (y, y)
    device = x.get_device()
    kinds = (y.dtype, None if bias is None else bias.dtype, parts.dtype)
    launch = _plan(device, kinds, tile, rows, columns, groups, group, max(16, triton.next_power_of_2(tokens)), pdl)
    blocks = -(-rows // tile.rows)
    launch.start(device, blocks, tile.split, 1, x, scale_x, stored, scale, bias, y, parts, arrived, tokens)


@functools.cache
def _plan(
    device: int, kinds: tuple[torch.dtype | None, ...], tile: Tile, rows: int, columns: int, groups: int, group: int,
    block_t: int, pdl: bool,
) -> Launch:  # fmt: skip
    """kinds: types of what differs between calls; no bias has none."""
    constants = (
        rows, columns, groups, group, block_t, tile.rows, tile.columns, tile.split, kinds[1] is not None, pdl,
        tile.ahead,
    )  # fmt: skip
    return Launch(_few, constants, num_warps=tile.warps, num_stages=tile.stages, pdl=pdl)


def needs(rows: int, columns: int, group: int, most: int) -> tuple[int, int]:
    """(float32 numbers, int32 counters) that products of up to `most` tokens want of the scratch memory."""
    numbers = counters = 0
    for tokens in range(1, most + 1):
        tile = tile_for(tokens, rows, columns, group)
        if tile.split > 1:
            numbers = max(numbers, tile.split * rows * max(16, triton.next_power_of_2(tokens)))
            counters = max(counters, triton.cdiv(rows, tile.rows))
    return numbers, counters


@triton.jit
def _ask(base, k, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Have a tile's cache lines of 128 bytes brought to the second-level cache."""
    lines = base + (k + tl.arange(0, (BLOCK_K + 127) // 128) * 128)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["tokens"])
def _few(  # type: ignore[no-untyped-def]
    x, scale_x, weight, scale, bias, y, parts, arrived, tokens, N: tl.constexpr, K: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, SPLIT), T <= BLOCK_T. With GROUP, BLOCK_K divides it."""
    block, split = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_ok = rows < N
    cols = tl.arange(0, BLOCK_K)
    token = tl.arange(0, BLOCK_T)
    token_ok = token < tokens
    steps: tl.constexpr = (K + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT)
    even: tl.constexpr = N % BLOCK_N == 0 and K % (BLOCK_K * SPLIT) == 0
    base = weight + rows.to(tl.int64)[:, None] * K
    if PDL:
        if even:
            for step in tl.static_range(AHEAD):
                if step < steps:
                    _ask(base, (split * steps + step) * BLOCK_K, BLOCK_K)
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(steps):
        k = (split * steps + step) * BLOCK_K
        at = k + cols
        v = tl.load(x + token[None, :] * K + at[:, None], mask=token_ok[None, :] & (at < K)[:, None], other=0.0)
        if even:
            tile = tl.load(base + at[None, :], eviction_policy="evict_first")
        else:
            tile = tl.load(base + at[None, :], mask=rows_ok[:, None] & (at < K)[None, :], other=0.0)
        if GROUP:
            group = k // GROUP
            left = tl.load(scale + rows * GROUPS + group, mask=rows_ok & (k + 0 * rows < K), other=0.0)
            right = tl.load(scale_x + token * GROUPS + group, mask=token_ok & (k + 0 * token < K), other=0.0)
            acc += tl.dot(tile, v) * left[:, None] * right[None, :]
        else:
            acc = tl.dot(tile, v, acc)
    last = True
    if SPLIT > 1:
        place = rows[:, None] * BLOCK_T + token[None, :]
        tl.store(parts + split * (N * BLOCK_T) + place, acc, mask=rows_ok[:, None])
        tl.debug_barrier()
        last = tl.atomic_add(arrived + block, 1, sem="acq_rel") == SPLIT - 1
        if last:
            acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
            for other in tl.static_range(SPLIT):
                theirs = parts + other * (N * BLOCK_T)
                acc += tl.load(theirs + place, mask=rows_ok[:, None], other=0.0, cache_modifier=".cg")
            tl.store(arrived + block, 0)
    if last:
        if not GROUP:
            acc *= tl.load(scale + rows, mask=rows_ok, other=0.0)[:, None]
            acc *= tl.load(scale_x + token, mask=token_ok, other=0.0)[None, :]
        if BIAS:
            acc += tl.load(bias + rows, mask=rows_ok, other=0.0).to(tl.float32)[:, None]
        out = y + token[None, :] * N + rows[:, None]
        tl.store(out, acc.to(y.dtype.element_ty), mask=token_ok[None, :] & rows_ok[:, None])
