"""A few tokens: each (token, expert) pair reads its expert's weights as it goes, without sorting. Two launches."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from core.interfaces.moe import ExpertWeights
from plugin_triton.dependent import dependent
from plugin_triton.launch import Launch
from plugin_triton.moe import fp8
from plugin_triton.moe.activation import code, gated
from plugin_triton.moe.chain import begin
from plugin_triton.moe.configs import Tile

# ruff: noqa: N803, N806


UNROLLED = tl.constexpr(48)  # steps of `_down` that the compiler sees at once, so that their loads overlap


def run_gate_up(x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, tile: Tile) -> torch.Tensor:
    """x [T, H], ids [T, K] -> act(gate(x)) * up(x) [T * K, I] float32."""
    tokens, hidden = x.shape
    pairs, inter = ids.numel(), weights.down.shape[2]
    h = torch.empty(pairs, inter, dtype=torch.float32, device=x.device)
    launch = _plan_gate_up(
        (x.dtype, weights.gate_up.dtype, ids.dtype, x.device),
        (x.stride(0), ids.shape[1], hidden, inter, fp8.CODES[weights.format], code(weights.activation)),
        tile,
        _keep(tokens),
    )
    programs = pairs * triton.cdiv(inter, tile.block_n)
    scale = weights.scales.get("gate_up", h)
    launch.start(x.get_device(), programs, 1, 1, x, weights.gate_up, scale, h, ids, pairs)
    return h


@functools.cache
def _plan_gate_up(kinds: tuple[Any, ...], sizes: tuple[int, ...], tile: Tile, keep: str) -> Launch:
    """kinds: types of what differs between calls, and the device."""
    overlap = dependent(kinds[-1])
    block_k = min(tile.block_k, triton.next_power_of_2(sizes[2]))
    return Launch(_gate_up, (*sizes, tile.block_n, block_k, keep, overlap), num_warps=tile.warps, pdl=overlap)


def run_down(
    h: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype, tile: Tile
) -> torch.Tensor:
    """h [T * K, I] float32, ids and factors [T, K] -> [T, H] in `dtype`. Right behind `run_gate_up` in its stream."""
    tokens, top_k = ids.shape
    hidden, inter = weights.down.shape[1:]
    out = torch.empty(tokens, hidden, dtype=dtype, device=h.device)
    launch = _plan_down(
        (weights.down.dtype, dtype, ids.dtype, h.device),
        (top_k, hidden, inter, fp8.CODES[weights.format]),
        tile,
        _keep(tokens),
    )
    programs = tokens * triton.cdiv(hidden, tile.block_n)
    scale = weights.scales.get("down", h)
    launch.start(h.get_device(), programs, 1, 1, h, weights.down, scale, out, ids, factors, tokens)
    return out


@functools.cache
def _plan_down(kinds: tuple[Any, ...], sizes: tuple[int, ...], tile: Tile, keep: str) -> Launch:
    """kinds: types of what differs between calls, and the device."""
    overlap = dependent(kinds[-1])
    block_k = min(tile.block_k, triton.next_power_of_2(sizes[2]))
    constants = (*sizes, tile.block_n, block_k, tile.stages, keep, overlap)
    return Launch(_down, constants, num_warps=tile.warps, pdl=overlap)


def _keep(tokens: int) -> str:
    """How weights stay in the L2 cache: of one token each is read once, several may share an expert."""
    return "evict_first" if tokens == 1 else ""


@triton.jit(do_not_specialize=["num_pairs"])
def _gate_up(  # type: ignore[no-untyped-def]
    x, weight, scale, h, ids, num_pairs, STRIDE_X: tl.constexpr, TOP_K: tl.constexpr, HIDDEN: tl.constexpr,
    INTER: tl.constexpr, FORMAT: tl.constexpr, ACT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h[pair, i] = act(gate_i . x) * (up_i . x). Pairs go fastest: those of one expert meet in the L2 cache."""
    pair = tl.program_id(0) % num_pairs
    n = tl.program_id(0) // num_pairs * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < INTER
    n = tl.minimum(n, INTER - 1)
    begin(PDL)
    expert = tl.load(ids + pair).to(tl.int64)
    row = x + (pair // TOP_K).to(tl.int64) * STRIDE_X
    gate_ptr = weight + (expert * 2 * INTER + n[:, None]) * HIDDEN
    up_ptr = gate_ptr + INTER * HIDDEN
    gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    TALL: tl.constexpr = (INTER + 127) // 128
    WIDE: tl.constexpr = (HIDDEN + 127) // 128
    # BLOCK_N divides 128, so that a program's rows are of one block of scales.
    scale_ptr = scale + (expert * 2 * TALL + tl.program_id(0) // num_pairs * BLOCK_N // 128) * WIDE
    for start in tl.static_range(0, HIDDEN, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if HIDDEN % BLOCK_K == 0:
            value = tl.load(row + k).to(tl.float32)
            gate_w = tl.load(gate_ptr + k[None, :], eviction_policy=KEEP)
            up_w = tl.load(up_ptr + k[None, :], eviction_policy=KEEP)
        else:
            inside = k < HIDDEN
            value = tl.load(row + k, mask=inside, other=0).to(tl.float32)
            gate_w = tl.load(gate_ptr + k[None, :], mask=inside[None, :], other=0.0, eviction_policy=KEEP)
            up_w = tl.load(up_ptr + k[None, :], mask=inside[None, :], other=0.0, eviction_policy=KEEP)
        if FORMAT == 3:
            block = tl.minimum(k // 128, WIDE - 1)
            gate += gate_w.to(tl.float32) * (value * tl.load(scale_ptr + block))[None, :]
            up += up_w.to(tl.float32) * (value * tl.load(scale_ptr + TALL * WIDE + block))[None, :]
        else:
            gate += gate_w.to(tl.float32) * value[None, :]
            up += up_w.to(tl.float32) * value[None, :]
    gate_sum = tl.sum(gate, axis=1)
    up_sum = tl.sum(up, axis=1)
    if FORMAT == 1:
        gate_sum *= tl.load(scale + expert * 2)
        up_sum *= tl.load(scale + expert * 2 + 1)
    elif FORMAT == 2:
        gate_sum *= tl.load(scale + expert * 2 * INTER + n)
        up_sum *= tl.load(scale + expert * 2 * INTER + INTER + n)
    tl.store(h + pair.to(tl.int64) * INTER + n, gated(gate_sum, up_sum, ACT), mask=real)


@triton.jit(do_not_specialize=["tokens"])
def _down(  # type: ignore[no-untyped-def]
    h, weight, scale, out, ids, factors, tokens, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr, KEEP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out[token, n] = sum over its experts of factor * down_n . h[pair], in float32."""
    token = tl.program_id(0) % tokens
    n = tl.program_id(0) // tokens * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < HIDDEN
    n = tl.minimum(n, HIDDEN - 1)
    STEPS: tl.constexpr = (INTER + BLOCK_K - 1) // BLOCK_K
    ALL: tl.constexpr = TOP_K * STEPS
    # What the router wrote is complete before `run_gate_up` lets this kernel start (see `chain`), so that weights can
    # be on their way while the hidden values are still computed.
    ahead = ()
    for step in tl.static_range(0, min(AHEAD, ALL)):
        early = tl.load(ids + token * TOP_K + step // STEPS, cache_modifier=".cg").to(tl.int64)
        ahead += (_down_weights(weight, early, n, step % STEPS * BLOCK_K, HIDDEN, INTER, BLOCK_K, KEEP),)
    begin(PDL)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for step in tl.static_range(0, min(UNROLLED, ALL)):
        pair = token * TOP_K + step // STEPS
        start = step % STEPS * BLOCK_K
        expert = tl.load(ids + pair).to(tl.int64)
        if step < AHEAD:
            w = ahead[step]
        else:
            w = _down_weights(weight, expert, n, start, HIDDEN, INTER, BLOCK_K, KEEP)
        total = _down_part(total, w, h, scale, factors, expert, pair, start, n, HIDDEN, INTER, FORMAT, BLOCK_N, BLOCK_K)
    for step in range(min(UNROLLED, ALL), ALL):
        pair = token * TOP_K + step // STEPS
        start = step % STEPS * BLOCK_K
        expert = tl.load(ids + pair).to(tl.int64)
        w = _down_weights(weight, expert, n, start, HIDDEN, INTER, BLOCK_K, KEEP)
        total = _down_part(total, w, h, scale, factors, expert, pair, start, n, HIDDEN, INTER, FORMAT, BLOCK_N, BLOCK_K)
    tl.store(out + token.to(tl.int64) * HIDDEN + n, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=real)


@triton.jit
def _down_weights(  # type: ignore[no-untyped-def]
    weight, expert, n, start, HIDDEN: tl.constexpr, INTER: tl.constexpr, BLOCK_K: tl.constexpr, KEEP: tl.constexpr
):
    """[BLOCK_N, BLOCK_K], zero behind the last column."""
    k = start + tl.arange(0, BLOCK_K)
    place = weight + (expert * HIDDEN + n[:, None]) * INTER + k[None, :]
    if INTER % BLOCK_K == 0:
        return tl.load(place, eviction_policy=KEEP)
    else:
        return tl.load(place, mask=(k < INTER)[None, :], other=0.0, eviction_policy=KEEP)


@triton.jit
def _down_part(  # type: ignore[no-untyped-def]
    total, w, h, scale, factors, expert, pair, start, n, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total + w * hidden values of the pair, scaled."""
    k = start + tl.arange(0, BLOCK_K)
    source = h + pair.to(tl.int64) * INTER + k
    if INTER % BLOCK_K == 0:
        value = tl.load(source)
    else:
        value = tl.load(source, mask=k < INTER, other=0)
    factor = tl.load(factors + pair)
    w = w.to(tl.float32)
    if FORMAT == 1:
        factor *= tl.load(scale + expert)
    elif FORMAT == 2:
        w *= tl.load(scale + expert * HIDDEN + n)[:, None]
    elif FORMAT == 3:
        TALL: tl.constexpr = (INTER + 127) // 128
        WIDE: tl.constexpr = (HIDDEN + 127) // 128
        row = tl.min(n, axis=0) // 128  # one block of scales: BLOCK_N divides 128
        value *= tl.load(scale + (expert * WIDE + row) * TALL + tl.minimum(k // 128, TALL - 1))
    return total + w * (value * factor)[None, :]
