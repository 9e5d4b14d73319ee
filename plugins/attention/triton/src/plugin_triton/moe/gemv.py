"""A few tokens: each (token, expert) pair reads its expert's weights as it goes, without sorting. Two launches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugin_triton.moe import launch
from plugin_triton.moe.activation import gated
from plugin_triton.moe.configs import Tile


def run_gate_up(
    x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, act: int, tile: Tile, overlap: bool
) -> torch.Tensor:
    """x [T, H], weight [E, 2I, H], ids [T, K] -> [T * K, I] float32."""
    tokens, hidden = x.shape
    pairs, inter = ids.numel(), weight.shape[1] // 2
    h = torch.empty(pairs, inter, dtype=torch.float32, device=x.device)
    _gate_up[(pairs * triton.cdiv(inter, tile.block_n),)](
        x, x.stride(0), weight, h, ids, pairs, TOP_K=ids.shape[1], HIDDEN=hidden, INTER=inter, ACT=act,
        BLOCK_N=tile.block_n, BLOCK_K=min(tile.block_k, triton.next_power_of_2(hidden)), STAGES=tile.stages,
        PDL=overlap, num_warps=tile.warps, **launch.options(overlap),
    )  # fmt: skip
    return h


def run_down(
    h: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype, tile: Tile,
    overlap: bool,
) -> torch.Tensor:  # fmt: skip
    """h [T * K, I] float32, weight [E, H, I], ids and factors [T, K] -> [T, H] in `dtype`."""
    tokens, top_k = ids.shape
    hidden, inter = weight.shape[1:]
    out = torch.empty(tokens, hidden, dtype=dtype, device=h.device)
    _down[(tokens * triton.cdiv(hidden, tile.block_n),)](
        h, weight, out, ids, factors, tokens, TOP_K=top_k, HIDDEN=hidden, INTER=inter, BLOCK_N=tile.block_n,
        BLOCK_K=min(tile.block_k, triton.next_power_of_2(inter)), STAGES=tile.stages, PDL=overlap,
        num_warps=tile.warps, **launch.options(overlap),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_pairs"])
def _gate_up(
    x, stride_x, weight, h, ids, num_pairs, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    ACT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h[pair, i] = act(gate_i . x) * (up_i . x). Pairs go fastest: those of one expert meet in the L2 cache."""
    pair = tl.program_id(0) % num_pairs
    n = tl.program_id(0) // num_pairs * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < INTER
    n = tl.minimum(n, INTER - 1)
    launch.begin(PDL)
    expert = tl.load(ids + pair).to(tl.int64)
    row = x + (pair // TOP_K).to(tl.int64) * stride_x
    gate_ptr = weight + (expert * 2 * INTER + n[:, None]) * HIDDEN
    up_ptr = gate_ptr + INTER * HIDDEN
    gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in tl.range(0, HIDDEN, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        if HIDDEN % BLOCK_K == 0:
            value = tl.load(row + k).to(tl.float32)[None, :]
            gate += tl.load(gate_ptr + k[None, :]).to(tl.float32) * value
            up += tl.load(up_ptr + k[None, :]).to(tl.float32) * value
        else:
            inside = k < HIDDEN
            value = tl.load(row + k, mask=inside, other=0).to(tl.float32)[None, :]
            gate += tl.load(gate_ptr + k[None, :], mask=inside[None, :], other=0).to(tl.float32) * value
            up += tl.load(up_ptr + k[None, :], mask=inside[None, :], other=0).to(tl.float32) * value
    value = gated(tl.sum(gate, axis=1), tl.sum(up, axis=1), ACT)
    tl.store(h + pair.to(tl.int64) * INTER + n, value, mask=real)


@triton.jit(do_not_specialize=["tokens"])
def _down(
    h, weight, out, ids, factors, tokens, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[token, n] = sum over its experts of factor * down_n . h[pair], in float32."""
    token = tl.program_id(0) % tokens
    n = tl.program_id(0) // tokens * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < HIDDEN
    n = tl.minimum(n, HIDDEN - 1)
    launch.begin(PDL)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    STEPS: tl.constexpr = (INTER + BLOCK_K - 1) // BLOCK_K
    for step in tl.range(0, TOP_K * STEPS, num_stages=STAGES):
        pair = token * TOP_K + step // STEPS
        k = step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        expert = tl.load(ids + pair).to(tl.int64)
        factor = tl.load(factors + pair)
        place = weight + (expert * HIDDEN + n[:, None]) * INTER + k[None, :]
        source = h + pair.to(tl.int64) * INTER + k
        if INTER % BLOCK_K == 0:
            total += tl.load(place).to(tl.float32) * (tl.load(source) * factor)[None, :]
        else:
            inside = k < INTER
            value = tl.load(source, mask=inside, other=0) * factor
            total += tl.load(place, mask=inside[None, :], other=0).to(tl.float32) * value[None, :]
    value = tl.sum(total, axis=1)
    tl.store(out + token.to(tl.int64) * HIDDEN + n, value.to(out.dtype.element_ty), mask=real)
