"""Matrix times one row: the weight is read once, with wide loads straight into registers.

A program takes BLOCK_N rows of the weight and walks over K. It asks for its first tile before it waits for the kernel
before it, so with dependent launch the memory never rests between two products. The RMS norm of the input costs one
sum beside the product: sum_k W[n, k] g[k] h[k] / rms(h) needs the root mean square at the end only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.dependent import release, wait
from plugin_triton.ops.activation import gate

# ruff: noqa: N803


@triton.jit
def _tile(base, k, cols, rows_ok, K: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """One [BLOCK_N, BLOCK_K] tile of the weight."""
    if EVEN:
        return tl.load(base + k + cols[None, :], eviction_policy="evict_first")
    return tl.load(
        base + k + cols[None, :], mask=rows_ok[:, None] & (k + cols < K)[None, :], other=0.0,
        eviction_policy="evict_first",
    )  # fmt: skip


@triton.jit
def _part(start, at, K: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements `at` of a row of K."""
    if EVEN:
        return tl.load(start + at)
    return tl.load(start + at, mask=at < K, other=0.0)


@triton.jit
def _sum(h, r, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    """h + r as the residual stream keeps it, rounded to its type; float32."""
    if ADD:
        h = (h.to(tl.float32) + r.to(tl.float32)).to(h.dtype)
    return h.to(tl.float32)


@triton.jit
def _partial(tile, v, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr):  # type: ignore[no-untyped-def]
    """Products of a tile, added as far as one thread can: [BLOCK_N, BLOCK_K / VEC]."""
    products = tile.to(tl.float32) * v[None, :]
    return tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // VEC, VEC)), axis=2)


@triton.jit
def _squares(h, BLOCK_K: tl.constexpr, VEC: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.sum(tl.reshape(h * h, (BLOCK_K // VEC, VEC)), axis=1)


@triton.jit
def gemv_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, y, residual, norm_weight, residual_out, normed_out, eps,
    N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr,
    BIAS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y [N] = act(weight @ norm(x + residual) + bias).

    weight [N, K], or [2N, K] with an activation: gate rows first. Programs 0 .. cdiv(N, BLOCK_N) - 1 compute y. With
    ADD or KEEP there is one more, which writes residual_out [K] = x + residual and normed_out [K]. Loads of the next
    tile are under way while one is multiplied.
    """
    block = tl.program_id(0)
    num_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    even_k: tl.constexpr = K % BLOCK_K == 0
    cols = tl.arange(0, BLOCK_K)
    if (ADD or KEEP) and block == num_blocks:
        release(PDL)
        wait(PDL)
        total = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, K, BLOCK_K):
            at = start + cols
            row = _part(x, at, K, even_k)
            sums = _sum(row, _part(residual, at, K, even_k) if ADD else row, ADD)
            if ADD:
                tl.store(residual_out + at, sums.to(residual_out.dtype.element_ty), mask=at < K)
            total += sums * sums
        if KEEP:
            factor = tl.rsqrt(tl.sum(total) / K + eps)
            for start in range(0, K, BLOCK_K):
                at = start + cols
                row = _part(x, at, K, even_k)
                sums = _sum(row, _part(residual, at, K, even_k) if ADD else row, ADD)
                normed = sums * factor * _part(norm_weight, at, K, even_k).to(tl.float32)
                tl.store(normed_out + at, normed.to(normed_out.dtype.element_ty), mask=at < K)
    else:
        even: tl.constexpr = N % BLOCK_N == 0 and even_k
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        rows_ok = rows < N
        base = weight + rows.to(tl.int64)[:, None] * K
        tile = _tile(base, 0, cols, rows_ok, K, even)
        if ACT != "none":
            base_up = base + tl.full([], N, tl.int64) * K
            tile_up = _tile(base_up, 0, cols, rows_ok, K, even)
            up = tl.zeros([BLOCK_N, BLOCK_K // VEC], tl.float32)
        if NORM:
            g = _part(norm_weight, cols, K, even_k)
        acc = tl.zeros([BLOCK_N, BLOCK_K // VEC], tl.float32)
        square = tl.zeros([BLOCK_K // VEC], tl.float32)
        release(PDL)
        wait(PDL)
        h = _part(x, cols, K, even_k)
        r = _part(residual, cols, K, even_k) if ADD else h
        last: tl.constexpr = (K - 1) // BLOCK_K * BLOCK_K
        for k in range(0, last, BLOCK_K):
            following = k + BLOCK_K
            next_tile = _tile(base, following, cols, rows_ok, K, even)
            if ACT != "none":
                next_up = _tile(base_up, following, cols, rows_ok, K, even)
            if NORM:
                next_g = _part(norm_weight, following + cols, K, even_k)
            next_h = _part(x, following + cols, K, even_k)
            next_r = _part(residual, following + cols, K, even_k) if ADD else next_h
            v = _sum(h, r, ADD)
            if NORM:
                square += _squares(v, BLOCK_K, VEC)
                v *= g.to(tl.float32)
                g = next_g
            acc += _partial(tile, v, BLOCK_N, BLOCK_K, VEC)
            if ACT != "none":
                up += _partial(tile_up, v, BLOCK_N, BLOCK_K, VEC)
                tile_up = next_up
            tile = next_tile
            h = next_h
            r = next_r
        v = _sum(h, r, ADD)
        if NORM:
            square += _squares(v, BLOCK_K, VEC)
            v *= g.to(tl.float32)
        acc += _partial(tile, v, BLOCK_N, BLOCK_K, VEC)
        out = tl.sum(acc, axis=1)
        if NORM:
            scale = tl.rsqrt(tl.sum(square) / K + eps)
            out *= scale
        if BIAS:
            out += tl.load(bias + rows, mask=rows_ok, other=0.0).to(tl.float32)
        if ACT != "none":
            up += _partial(tile_up, v, BLOCK_N, BLOCK_K, VEC)
            out_up = tl.sum(up, axis=1)
            if NORM:
                out_up *= scale
            if BIAS:
                out_up += tl.load(bias + N + rows, mask=rows_ok, other=0.0).to(tl.float32)
            out = gate(out, ACT) * out_up
        tl.store(y + rows, out.to(y.dtype.element_ty), mask=rows_ok)
