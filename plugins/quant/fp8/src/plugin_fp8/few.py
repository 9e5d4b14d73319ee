"""Few tokens times an e4m3 weight: the tokens stay as they are, the weight is widened in registers.

All that counts is how fast the weight comes: each of its bytes is read once, and the first are asked for before the
kernel before this one has ended (programmatic dependent launch; only constants are read before `gdc_wait`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# ruff: noqa: N803

_PROGRAMS = 264  # that are wanted: two for each processor of a large chip


@dataclass(frozen=True, slots=True)
class Tile:
    """rows, columns: of the weight in one program's step. split: programs that share a row's columns; one token alone
    goes through `_one`, which has no split."""

    rows: int
    columns: int
    warps: int
    stages: int = 3
    split: int = 1
    half: bool = True  # widened to float16, which takes the chip fewer instructions than bfloat16
    ahead: int = 0  # steps whose memory is asked for before the kernel before this one has ended


@functools.cache
def tile_for(tokens: int, rows: int, columns: int, group: int) -> Tile:
    """Tile for a shape. Chosen by what the chip can hold in flight; see the evaluation folder for how others fare."""
    if tokens == 1:
        return Tile(4, 2048 if columns >= 2048 else max(128, triton.next_power_of_2(columns)), 4)
    step = group or 128
    split = 1
    while split < 8 and triton.cdiv(rows, 64) * split < _PROGRAMS and columns >= 2 * split * 4 * step:
        split *= 2
    return Tile(64, step, 4, 5, split)


def run(
    tile: Tile, x: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, group: int, bias: torch.Tensor | None,
    y: torch.Tensor, scratch: tuple[torch.Tensor, torch.Tensor] | None, *, pdl: bool,
    scale_x: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """y [T, N] = x [T, K] times stored [N, K], scaled, plus bias. scale_x [T]: of x, which is e4m3 then. scratch: as
    large as `needs` says where the tile is split, its counters zero; they are zero again afterwards."""
    tokens, columns = x.shape
    rows = stored.shape[0]
    extra = {"launch_pdl": True} if pdl else {}
    blocks = triton.cdiv(rows, tile.rows)
    if tile.rows < 32:
        _one[(blocks,)](
            x, stored, scale, bias, y, N=rows, K=columns, GROUPS=scale.shape[1], GROUP=group, BLOCK_N=tile.rows,
            BLOCK_K=tile.columns, VEC=16, BIAS=bias is not None, PDL=pdl, num_warps=tile.warps, **extra,
        )  # fmt: skip
        return
    block_t = max(16, triton.next_power_of_2(tokens))
    assert tile.split == 1 or scratch is not None
    parts, arrived = scratch or (y, y)
    _some[(blocks, tile.split)](
        x, scale_x, stored, scale, bias, y, parts, arrived, tokens, N=rows, K=columns, GROUPS=scale.shape[1],
        GROUP=group, BLOCK_T=block_t, BLOCK_N=tile.rows, BLOCK_K=tile.columns, SPLIT=tile.split,
        BIAS=bias is not None, PDL=pdl, HALF=tile.half and scale_x is None and x.dtype != torch.float32, STORED=scale_x is not None,
        AHEAD=tile.ahead if pdl else 0, num_warps=tile.warps, num_stages=tile.stages, **extra,
    )  # fmt: skip


def needs(rows: int, columns: int, group: int, few_rows: int) -> tuple[int, int]:
    """(float32 numbers, int32 counters) that products of up to `few_rows` tokens want of the scratch memory."""
    numbers = counters = 0
    for tokens in range(2, few_rows + 1):
        tile = tile_for(tokens, rows, columns, group)
        if tile.split > 1:
            numbers = max(numbers, tile.split * rows * max(16, triton.next_power_of_2(tokens)))
            counters = max(counters, triton.cdiv(rows, tile.rows))
    return numbers, counters


@triton.jit
def _tile(base, k, cols, rows_ok, K: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    if EVEN:
        return tl.load(base + (k + cols)[None, :], eviction_policy="evict_first")
    inside = rows_ok[:, None] & (k + cols < K)[None, :]
    return tl.load(base + (k + cols)[None, :], mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _ask(base, k, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Have a tile's cache lines of 128 bytes brought to the second-level cache."""
    lines = base + (k + tl.arange(0, BLOCK_K // 128) * 128)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _sums(tile, v, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr):  # type: ignore[no-untyped-def]
    """Products added as far as one thread has them: [BLOCK_N, BLOCK_K / VEC]."""
    products = tile.to(tl.float32) * v.to(tl.float32)[None, :]
    return tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // VEC, VEC)), axis=2)


@triton.jit
def _one(  # type: ignore[no-untyped-def]
    x, weight, scale, bias, y, N: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [N] for one token. While a tile is multiplied the next is on its way."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_ok = rows < N
    cols = tl.arange(0, BLOCK_K)
    even: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    base = weight + rows.to(tl.int64)[:, None] * K
    tile = _tile(base, 0, cols, rows_ok, K, even)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_K // VEC], tl.float32)
    for k in range(0, K, BLOCK_K):
        v = tl.load(x + k + cols, mask=k + cols < K, other=0.0)
        following = _tile(base, k + BLOCK_K, cols, rows_ok, K, False)
        part = _sums(tile, v, BLOCK_N, BLOCK_K, VEC)
        if GROUP:
            group = (k + tl.arange(0, BLOCK_K // VEC) * VEC) // GROUP
            inside = rows_ok[:, None] & (group < GROUPS)[None, :]
            part *= tl.load(scale + rows[:, None] * GROUPS + group[None, :], mask=inside, other=0.0)
        acc += part
        tile = following
    out = tl.sum(acc, axis=1)
    if not GROUP:
        out *= tl.load(scale + rows, mask=rows_ok, other=0.0)
    if BIAS:
        out += tl.load(bias + rows, mask=rows_ok, other=0.0).to(tl.float32)
    tl.store(y + rows, out.to(y.dtype.element_ty), mask=rows_ok)


@triton.jit(do_not_specialize=["tokens"])
def _some(  # type: ignore[no-untyped-def]
    x, scale_x, weight, scale, bias, y, parts, arrived, tokens, N: tl.constexpr, K: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr, HALF: tl.constexpr, STORED: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """y [T, N] for T <= BLOCK_T. The weight is the left operand of the products, whose narrow side the tokens are. With
    SPLIT, the program that comes last adds what all have, in their order. With GROUP, BLOCK_K is no more than it.
    STORED: x is e4m3 too, with scale_x [T]. HALF: both sides are multiplied in float16, inputs beyond it clamped."""
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
                _ask(base, (split * steps + step) * BLOCK_K, BLOCK_K)
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(steps):
        k = (split * steps + step) * BLOCK_K
        at = k + cols
        v = tl.load(x + token[None, :] * K + at[:, None], mask=token_ok[None, :] & (at < K)[:, None], other=0.0)
        tile = _tile(base, k, cols, rows_ok, K, even)
        if HALF:
            tile = tile.to(tl.float16)
            v = tl.clamp(v.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
        elif not STORED:
            tile = tile.to(v.dtype)
        if GROUP:
            s = tl.load(scale + rows * GROUPS + k // GROUP, mask=rows_ok & (k + 0 * rows < K), other=0.0)
            acc += tl.dot(tile, v) * s[:, None]
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
        if STORED:
            acc *= tl.load(scale_x + token, mask=token_ok, other=0.0)[None, :]
        if BIAS:
            acc += tl.load(bias + rows, mask=rows_ok, other=0.0).to(tl.float32)[:, None]
        out = y + token[None, :] * N + rows[:, None]
        tl.store(out, acc.to(y.dtype.element_ty), mask=token_ok[None, :] & rows_ok[:, None])
