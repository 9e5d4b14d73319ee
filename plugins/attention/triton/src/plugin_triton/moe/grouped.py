"""Many tokens: sorted by expert, then one matrix product over the blocks of all experts."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from core.interfaces.moe import ExpertWeights
from plugin_triton.dependent import dependent
from plugin_triton.interpreter import INTERPRETED
from plugin_triton.launch import Launch
from plugin_triton.moe import chain, fp8
from plugin_triton.moe.activation import code, gated
from plugin_triton.moe.chain import begin
from plugin_triton.moe.configs import MoeConfig, Tile
from plugin_triton.moe.sorting import Sorted, sort_by_expert
from plugin_triton.ops.quantize import quantize_fp8_group, quantize_fp8_token

# ruff: noqa: N803


def run_grouped(
    x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, factors: torch.Tensor, config: MoeConfig
) -> torch.Tensor:
    """As `MoeRunner.run`. What lies between the kernels is in x's dtype, or quantized from it; sums are in float32."""
    tokens, hidden = x.shape
    inter, top_k = weights.down.shape[2], ids.shape[1]
    order = sort_by_expert(ids, weights.down.shape[0], config.block_m)
    h = torch.empty(tokens * top_k, inter, dtype=x.dtype, device=x.device)
    y = torch.empty(tokens * top_k, hidden, dtype=x.dtype, device=x.device)
    act = code(weights.activation)
    multiply(x, weights, "gate_up", h, factors, order, top_k, act, config.block_m, config.gate_up)
    multiply(h, weights, "down", y, factors, order, 1, -1, config.block_m, config.down)
    return combine(y.view(tokens, top_k, hidden))


def multiply(
    x: torch.Tensor, weights: ExpertWeights, name: str, y: torch.Tensor, factors: torch.Tensor, order: Sorted,
    share: int, act: int, block_m: int, tile: Tile,
) -> None:  # fmt: skip
    """y[pair] = weight[its expert] x[pair // share]. name: "gate_up", "down". act >= 0: of gate and up, gated;
    -1: times the pair's factor."""
    n, k = y.shape[1], x.shape[1]
    weight: torch.Tensor = getattr(weights, name)
    format_ = fp8.CODES[weights.format]
    x_scale = w_scale = weight  # not read
    block_k = tile.block_k
    if format_:
        x, x_scale = quantize_fp8_group(x, fp8.GROUP) if weights.format == fp8.BLOCK else quantize_fp8_token(x)
        w_scale = weights.scales[name]
        block_k = fp8.GROUP if weights.format == fp8.BLOCK else block_k
    described = None
    if tile.tma and chain.can_describe(weight):
        described = TensorDescriptor.from_tensor(weight.view(-1, k), [tile.block_n, block_k])
    launch = _plan(
        (x.dtype, weight.dtype, y.dtype, x.device, described is not None),
        (x.stride(0), n, k, share, format_, act, block_m, block_k),
        tile,
    )
    launch.start(
        x.get_device(), order.max_blocks * triton.cdiv(n, tile.block_n), 1, 1, x, x_scale, weight, described, w_scale,
        y, factors, order.order, order.blocks, order.max_blocks,
    )  # fmt: skip


@functools.cache
def _plan(kinds: tuple[Any, ...], sizes: tuple[int, ...], tile: Tile) -> Launch:
    """kinds: types of what differs between calls, the device, and whether weights are described."""
    *_, device, described = kinds
    k, block_m, block_k = sizes[2], *sizes[-2:]
    overlap = dependent(device)
    constants = (
        *sizes, tile.block_n, tile.group_m, k % block_k == 0, described, tile.swap,
        "evict_first" if block_m == 16 else "", overlap,
    )  # fmt: skip
    return Launch(_grouped, constants, num_warps=tile.warps, num_stages=tile.stages, pdl=overlap)


@triton.jit(do_not_specialize=["num_blocks"])
def _grouped(  # type: ignore[no-untyped-def]
    x, x_scale, weight, described, w_scale, y, factors, order, blocks, num_blocks,
    STRIDE_X: tl.constexpr, N: tl.constexpr, K: tl.constexpr, SHARE: tl.constexpr, FORMAT: tl.constexpr,
    ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, TMA: tl.constexpr, SWAP: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one expert's product. Rows behind the expert's last one repeat pair 0 and are not stored.

    described: `weight` as [E * rows, K], for the tensor memory accelerator to fetch, if TMA. A tile may go on into the
    next expert's rows, which give columns that are not stored. KEEP: how weights stay in the L2 cache; where each is
    read once, they go first.
    """
    num_n = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP_M * num_n)
    size = tl.minimum(num_blocks - group * GROUP_M, GROUP_M)
    block = group * GROUP_M + program % (GROUP_M * num_n) % size
    n = program % (GROUP_M * num_n) // size * BLOCK_N + tl.arange(0, BLOCK_N)
    begin(PDL)
    expert = tl.load(blocks + block).to(tl.int64)
    if expert < 0:
        return
    rows = tl.load(blocks + num_blocks + block) + tl.arange(0, BLOCK_M)
    real = rows < tl.load(blocks + 2 * num_blocks + block)
    pair = tl.load(order + rows, mask=real, other=0)
    source = (pair // SHARE).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    column = n % N  # columns behind the last one read the first ones again
    x_ptr = _along_k(x + source * STRIDE_X, k, not SWAP)
    gate_ptr = _along_k(weight + (expert * (2 * N if ACT >= 0 else N) + column) * K, k, SWAP)
    up_ptr = gate_ptr + N * K
    w_row = (expert * (2 * N if ACT >= 0 else N) + program % (GROUP_M * num_n) // size * BLOCK_N).to(tl.int32)
    acc = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
    up = acc
    if FORMAT == 3:
        wide = tl.cdiv(K, 128)
        tall = tl.cdiv(N, 128)
        x_scale += source * wide
        w_scale += (expert * (2 * tall if ACT >= 0 else tall) + column // 128) * wide
    for start in range(0, K, BLOCK_K):
        a = _part(x_ptr, k, K - start, not SWAP, EVEN_K, "")
        if TMA:
            b = described.load([w_row, start])
            if not SWAP:
                b = tl.trans(b)
        else:
            b = _part(gate_ptr, k, K - start, SWAP, EVEN_K, KEEP)
        if FORMAT == 3:
            by_row = tl.load(x_scale + start // 128)
            by_column = tl.load(w_scale + start // 128)
            acc += _dot(a, b, None, SWAP) * _outer(by_row, by_column, SWAP)
        else:
            acc = _dot(a, b, acc, SWAP)
        if ACT >= 0:
            if TMA:
                b = described.load([w_row + N, start])
                if not SWAP:
                    b = tl.trans(b)
            else:
                b = _part(up_ptr, k, K - start, SWAP, EVEN_K, KEEP)
            if FORMAT == 3:
                by_column = tl.load(w_scale + tall * wide + start // 128)
                up += _dot(a, b, None, SWAP) * _outer(by_row, by_column, SWAP)
            else:
                up = _dot(a, b, up, SWAP)
        x_ptr += BLOCK_K
        gate_ptr += BLOCK_K
        up_ptr += BLOCK_K
    if SWAP:
        acc = tl.trans(acc)
        up = tl.trans(up)
    if FORMAT == 1 or FORMAT == 2:
        by_row = tl.load(x_scale + source)[:, None]
        if FORMAT == 1:
            gate_scale = w_scale + expert * (2 if ACT >= 0 else 1) + tl.zeros([BLOCK_N], tl.int32)
            up_scale = gate_scale + 1
        else:
            gate_scale = w_scale + expert * (2 * N if ACT >= 0 else N) + column
            up_scale = gate_scale + N
        acc *= by_row * tl.load(gate_scale)[None, :]
        if ACT >= 0:
            up *= by_row * tl.load(up_scale)[None, :]
    if ACT >= 0:
        acc = gated(acc, up, ACT)
    else:
        acc *= tl.load(factors + pair)[:, None]
    place = y + pair.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), mask=real[:, None] & (n < N)[None, :])


@triton.jit
def _along_k(first, k, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers from the first element of each row: [row, k] if ROWS, else [k, row]."""
    if ROWS:
        return first[:, None] + k[None, :]
    else:
        return first[None, :] + k[:, None]


@triton.jit
def _part(pointers, k, left, ROWS: tl.constexpr, EVEN: tl.constexpr, KEEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """left: values of k that there are."""
    if EVEN:
        return tl.load(pointers, eviction_policy=KEEP)
    elif ROWS:
        return tl.load(pointers, mask=(k < left)[None, :], other=0.0, eviction_policy=KEEP)
    else:
        return tl.load(pointers, mask=(k < left)[:, None], other=0.0, eviction_policy=KEEP)


@triton.jit
def _dot(a, b, acc, SWAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """acc + a b, or acc + b a if SWAP."""
    if SWAP:
        a, b = b, a
    if INTERPRETED:  # knows no product of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _outer(by_row, by_column, SWAP: tl.constexpr):  # type: ignore[no-untyped-def]
    if SWAP:
        return by_column[:, None] * by_row[None, :]
    else:
        return by_row[:, None] * by_column[None, :]


def combine(y: torch.Tensor) -> torch.Tensor:
    """y [T, K, H] -> its sum over K, [T, H], in float32 and in order."""
    tokens, top_k, hidden = y.shape
    out = torch.empty(tokens, hidden, dtype=y.dtype, device=y.device)
    block = min(1024, triton.next_power_of_2(hidden))
    _plan_combine(y.dtype, y.device, (hidden, top_k, block)).start(
        y.get_device(), tokens, triton.cdiv(hidden, block), 1, y, out
    )
    return out


@functools.cache
def _plan_combine(dtype: torch.dtype, device: torch.device, sizes: tuple[int, ...]) -> Launch:
    overlap = dependent(device)
    return Launch(_combine, (*sizes, overlap), num_warps=4, pdl=overlap)


@triton.jit
def _combine(y, out, HIDDEN: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < HIDDEN
    total = tl.zeros([BLOCK], tl.float32)
    for choice in range(TOP_K):
        total += tl.load(y + (token * TOP_K + choice) * HIDDEN + n, mask=inside, other=0).to(tl.float32)
    tl.store(out + token * HIDDEN + n, total.to(out.dtype.element_ty), mask=inside)
