"""Many tokens: sorted by expert, then one matrix product over the blocks of all experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

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
from plugin_triton.moe.sorting import Sorting
from plugin_triton.ops.quantize import quantize_fp8_group, quantize_fp8_token

# ruff: noqa: N803


class Grouped:
    """One layer's experts with the tiles of `config`, for inputs of one type and row stride. What lies between the
    kernels is in x's dtype, or quantized from it; sums are in float32."""

    def __init__(self, weights: ExpertWeights, config: MoeConfig, dtype: torch.dtype, stride: int, top_k: int) -> None:
        _, hidden, inter = weights.down.shape
        self.dtype, self.top_k, self.hidden, self.inter = dtype, top_k, hidden, inter
        act, block_m = code(weights.activation), config.block_m
        self.gate_up = Product(weights, "gate_up", dtype, stride, top_k, act, block_m, config.gate_up)
        self.down = Product(weights, "down", dtype, inter, 1, -1, block_m, config.down)
        self.sum, self.blocks = _plan_combine(dtype, weights.down.device, hidden, top_k)

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, factors: torch.Tensor, sorting: Sorting) -> torch.Tensor:
        """As `MoeRunner.run`. sorting: for as many pairs as there are, and the block_m of the config."""
        num_pairs, num_blocks, device = sorting.num_pairs, sorting.max_blocks, x.device
        numbers = sorting(ids)
        h = torch.empty((num_pairs, self.inter), dtype=self.dtype, device=device)
        y = torch.empty((num_pairs, self.hidden), dtype=self.dtype, device=device)
        self.gate_up(x, h, factors, numbers, num_blocks)
        self.down(h, y, factors, numbers, num_blocks)
        tokens = x.shape[0]
        out = torch.empty((tokens, self.hidden), dtype=self.dtype, device=device)
        self.sum.start(x.get_device(), tokens, self.blocks, 1, y, out)
        return out


class Product:
    """y[pair] = weight[its expert] x[pair // share], for x of `dtype` whose rows are `stride` apart and y of the same
    type. name: of the weight, "gate_up" or "down". act >= 0: of gate and up, gated; -1: times the pair's factor."""

    def __init__(
        self, weights: ExpertWeights, name: str, dtype: torch.dtype, stride: int, share: int, act: int, block_m: int,
        tile: Tile,
    ) -> None:  # fmt: skip
        self.weight: torch.Tensor = getattr(weights, name)
        _, rows, k = self.weight.shape
        n = rows // 2 if act >= 0 else rows
        format_, block_k = fp8.CODES[weights.format], tile.block_k
        self.scale = self.weight  # not read
        self.quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
        if format_:
            self.scale, stride = weights.scales[name], k
            self.quantize = quantize_fp8_token
        if weights.format == fp8.BLOCK:
            self.quantize, block_k = partial(quantize_fp8_group, group=fp8.GROUP), fp8.GROUP
        self.described: TensorDescriptor | None = None
        if tile.tma and chain.can_describe(self.weight):
            self.described = TensorDescriptor.from_tensor(self.weight.view(-1, k), [tile.block_n, block_k])
        overlap = dependent(self.weight.device)
        constants = (
            stride, n, k, share, format_, act, block_m, block_k, tile.block_n, tile.group_m, k % block_k == 0,
            self.described is not None, tile.swap, "evict_first" if block_m == 16 else "", overlap,
        )  # fmt: skip
        self.across = triton.cdiv(n, tile.block_n)
        self.launch = Launch(_grouped, constants, num_warps=tile.warps, num_stages=tile.stages, pdl=overlap)

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, factors: torch.Tensor, numbers: torch.Tensor, num_blocks: int
    ) -> None:
        """factors [P]; numbers, num_blocks: of Sorting."""
        x_scale = self.weight  # not read
        if self.quantize is not None:
            x, x_scale = self.quantize(x)
        self.launch.start(
            x.get_device(), num_blocks * self.across, 1, 1, x, x_scale, self.weight, self.described, self.scale, y,
            factors, numbers, num_blocks,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_blocks"])
def _grouped(  # type: ignore[no-untyped-def]
    x, x_scale, weight, described, w_scale, y, factors, numbers, num_blocks,
    STRIDE_X: tl.constexpr, N: tl.constexpr, K: tl.constexpr, SHARE: tl.constexpr, FORMAT: tl.constexpr,
    ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, TMA: tl.constexpr, SWAP: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one expert's product. Rows behind the expert's last one repeat pair 0 and are not stored.
    numbers: of Sorting.

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
    blocks, order = numbers, numbers + 3 * num_blocks
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
    launch, blocks = _plan_combine(y.dtype, y.device, hidden, top_k)
    launch.start(y.get_device(), tokens, blocks, 1, y, out)
    return out


@functools.cache
def _plan_combine(dtype: torch.dtype, device: torch.device, hidden: int, top_k: int) -> tuple[Launch, int]:
    """(the launch, programs of a token)"""
    overlap = dependent(device)
    block = min(1024, triton.next_power_of_2(hidden))
    return Launch(_combine, (hidden, top_k, block, overlap), num_warps=4, pdl=overlap), triton.cdiv(hidden, block)


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
