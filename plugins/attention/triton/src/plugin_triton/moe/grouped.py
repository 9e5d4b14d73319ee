"""Many tokens: sorted by expert, then one matrix product over the blocks of all experts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugin_triton.moe import launch
from plugin_triton.moe.activation import gated
from plugin_triton.moe.configs import MoeConfig, Tile
from plugin_triton.moe.sorting import Sorted, sort_by_expert


def run_grouped(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, factors: torch.Tensor, act: int,
    config: MoeConfig, overlap: bool,
) -> torch.Tensor:  # fmt: skip
    """x [T, H], gate_up [E, 2I, H], down [E, H, I], ids and factors [T, K] -> [T, H]. What lies between the kernels is
    in x's dtype, the sums in float32."""
    tokens, hidden = x.shape
    inter, top_k = down.shape[2], ids.shape[1]
    order = sort_by_expert(ids, down.shape[0], config.block_m, overlap)
    h = torch.empty(tokens * top_k, inter, dtype=x.dtype, device=x.device)
    y = torch.empty(tokens * top_k, hidden, dtype=x.dtype, device=x.device)
    multiply(x, gate_up, h, factors, order, top_k, act, config.block_m, config.gate_up, overlap)
    multiply(h, down, y, factors, order, 1, -1, config.block_m, config.down, overlap)
    return combine(y.view(tokens, top_k, hidden), overlap)


def multiply(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, factors: torch.Tensor, order: Sorted, share: int, act: int,
    block_m: int, tile: Tile, overlap: bool,
) -> None:  # fmt: skip
    """y[pair] = weight[its expert] x[pair // share]; act >= 0: of gate and up, gated; -1: times the pair's factor."""
    n, k = y.shape[1], x.shape[1]
    grid = (order.max_blocks * triton.cdiv(n, tile.block_n),)
    _grouped[grid](
        x, x.stride(0), weight, y, factors, order.order, order.blocks, order.max_blocks, n, k, SHARE=share, ACT=act,
        BLOCK_M=block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
        EVEN_K=k % tile.block_k == 0, SWAP=tile.swap, WIDE=launch.INTERPRETED, PDL=overlap, num_warps=tile.warps, num_stages=tile.stages,
        **launch.options(overlap),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_blocks"])
def _grouped(
    x, stride_x, weight, y, factors, order, blocks, num_blocks, N, K, SHARE: tl.constexpr, ACT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
    SWAP: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one expert's product. Rows behind the expert's last one repeat pair 0 and are not stored."""
    num_n = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP_M * num_n)
    first_block = group * GROUP_M
    size = tl.minimum(num_blocks - first_block, GROUP_M)
    block = first_block + program % (GROUP_M * num_n) % size
    n = (program % (GROUP_M * num_n)) // size * BLOCK_N + tl.arange(0, BLOCK_N)
    launch.begin(PDL)
    expert = tl.load(blocks + block).to(tl.int64)
    if expert < 0:
        return
    rows = tl.load(blocks + num_blocks + block) + tl.arange(0, BLOCK_M)
    real = rows < tl.load(blocks + 2 * num_blocks + block)
    pair = tl.load(order + rows, mask=real, other=0)
    k = tl.arange(0, BLOCK_K)
    # Columns behind the last one read the first ones again.
    x_ptr = x + (pair // SHARE).to(tl.int64) * stride_x
    w_ptr = weight + (expert * (2 * N if ACT >= 0 else N) + n % N) * K
    if SWAP:
        x_ptr = x_ptr[None, :] + k[:, None]
        w_ptr = w_ptr[:, None] + k[None, :]
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        x_ptr = x_ptr[:, None] + k[None, :]
        w_ptr = w_ptr[None, :] + k[:, None]
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = acc
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_ptr)
            b = tl.load(w_ptr)
        else:
            inside = start + k < K
            a = tl.load(x_ptr, mask=inside[:, None] if SWAP else inside[None, :], other=0)
            b = tl.load(w_ptr, mask=inside[None, :] if SWAP else inside[:, None], other=0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        if SWAP:
            acc = tl.dot(b, a, acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        if ACT >= 0:
            if EVEN_K:
                b = tl.load(w_ptr + N * K)
            else:
                b = tl.load(w_ptr + N * K, mask=inside[None, :] if SWAP else inside[:, None], other=0)
            if WIDE:
                b = b.to(tl.float32)
            if SWAP:
                up = tl.dot(b, a, up, input_precision="ieee")
            else:
                up = tl.dot(a, b, up, input_precision="ieee")
        x_ptr += BLOCK_K
        w_ptr += BLOCK_K
    if ACT >= 0:
        acc = gated(acc, up, ACT)
    if SWAP:
        acc = tl.trans(acc)
    if ACT < 0:
        acc *= tl.load(factors + pair)[:, None]
    place = y + pair.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), mask=real[:, None] & (n < N)[None, :])


def combine(y: torch.Tensor, overlap: bool) -> torch.Tensor:
    """y [T, K, H] -> its sum over K, [T, H], in float32 and in order."""
    tokens, top_k, hidden = y.shape
    out = torch.empty(tokens, hidden, dtype=y.dtype, device=y.device)
    block = min(1024, triton.next_power_of_2(hidden))
    _combine[(tokens, triton.cdiv(hidden, block))](
        y, out, hidden, TOP_K=top_k, BLOCK=block, PDL=overlap, num_warps=4, **launch.options(overlap)
    )
    return out


@triton.jit
def _combine(y, out, hidden, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    launch.begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < hidden
    total = tl.zeros([BLOCK], tl.float32)
    for choice in range(TOP_K):
        total += tl.load(y + (token * TOP_K + choice) * hidden + n, mask=inside, other=0).to(tl.float32)
    tl.store(out + token * hidden + n, total.to(out.dtype.element_ty), mask=inside)
