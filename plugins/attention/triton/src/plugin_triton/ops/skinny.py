"""Matrix times a few rows: the weight is the left operand of the tensor cores' products, so that its tiles are tall and
the few tokens are the narrow side. Where there are too few blocks of weight rows to fill the chip, K is split; the
program that arrives last adds the parts in their order, so the sum does not depend on who was first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.dependent import release, wait
from plugin_triton.interpreter import dot
from plugin_triton.ops.activation import gate

# ruff: noqa: N803


@triton.jit
def _prefetch(base, k, K: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Ask for one tile's cache lines of 64 elements to be brought to the second-level cache."""
    at = k + tl.arange(0, BLOCK_K // 64) * 64
    lines = base + at[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["T"])
def skinny_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, y, parts, arrived, T,
    N: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, AHEAD: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [T, N] = act(x [T, K] @ weight.T + bias) for T <= BLOCK_T.

    weight [N, K], or [2N, K] with an activation: gate rows first. Grid (cdiv(N, BLOCK_N), SPLIT). parts
    [SPLIT, 1 or 2, N, BLOCK_T] float32 and arrived [blocks] int32, zero before and after, are for SPLIT > 1. AHEAD:
    tiles to ask for before the kernel before this one has ended.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    steps: tl.constexpr = (K + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT)
    first = split * steps * BLOCK_K
    even: tl.constexpr = N % BLOCK_N == 0 and K % (BLOCK_K * SPLIT) == 0
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    tokens = tl.arange(0, BLOCK_T)
    rows_ok, tokens_ok = rows < N, tokens < T
    base = weight + rows.to(tl.int64)[:, None] * K
    base_up = base + tl.full([], N, tl.int64) * K
    if PDL:
        for ahead in tl.static_range(AHEAD):
            if even:
                _prefetch(base, first + ahead * BLOCK_K, K, BLOCK_K)
                if ACT != "none":
                    _prefetch(base_up, first + ahead * BLOCK_K, K, BLOCK_K)
    release(PDL)
    wait(PDL)
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(steps):
        k = first + step * BLOCK_K
        at = k + cols
        v = tl.load(x + tokens[None, :] * K + at[:, None], mask=tokens_ok[None, :] & (at < K)[:, None], other=0.0)
        if even:
            tile = tl.load(base + at[None, :], eviction_policy="evict_first")
        else:
            tile = tl.load(base + at[None, :], mask=rows_ok[:, None] & (at < K)[None, :], other=0.0)
        acc = dot(tile, v, acc)
        if ACT != "none":
            if even:
                tile_up = tl.load(base_up + at[None, :], eviction_policy="evict_first")
            else:
                tile_up = tl.load(base_up + at[None, :], mask=rows_ok[:, None] & (at < K)[None, :], other=0.0)
            up = dot(tile_up, v, up)
    last = True
    if SPLIT > 1:
        halves: tl.constexpr = 1 if ACT == "none" else 2
        place = rows[:, None] * BLOCK_T + tokens[None, :]
        mine = parts + split * (halves * N * BLOCK_T)
        tl.store(mine + place, acc, mask=rows_ok[:, None])
        if ACT != "none":
            tl.store(mine + N * BLOCK_T + place, up, mask=rows_ok[:, None])
        tl.debug_barrier()
        last = tl.atomic_add(arrived + block, 1, sem="acq_rel") == SPLIT - 1
        if last:
            acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
            up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
            for other in tl.static_range(SPLIT):
                theirs = parts + other * (halves * N * BLOCK_T)
                acc += tl.load(theirs + place, mask=rows_ok[:, None], other=0.0, cache_modifier=".cg")
                if ACT != "none":
                    up += tl.load(theirs + N * BLOCK_T + place, mask=rows_ok[:, None], other=0.0, cache_modifier=".cg")
            tl.store(arrived + block, 0)
    if last:
        if BIAS:
            acc += tl.load(bias + rows, mask=rows_ok, other=0.0).to(tl.float32)[:, None]
        if ACT != "none":
            if BIAS:
                up += tl.load(bias + N + rows, mask=rows_ok, other=0.0).to(tl.float32)[:, None]
            acc = gate(acc, ACT) * up
        out = y + tokens[None, :] * N + rows[:, None]
        tl.store(out, acc.to(y.dtype.element_ty), mask=tokens_ok[None, :] & rows_ok[:, None])
