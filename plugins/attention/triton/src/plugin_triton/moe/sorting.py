"""Pairs by expert, on the device alone: count, prefix sum, place. Launch shapes depend on sizes only, so that it can be
recorded in a graph.

A pair is one token's choice of one expert, numbered token * K + choice. The pairs of one expert come in any order;
no result depends on it, since each has its own row of a product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from plugin_triton.dependent import dependent
from plugin_triton.launch import Launch
from plugin_triton.moe.chain import begin

# ruff: noqa: N803
CHUNK = 1024  # pairs of one program


@dataclass(frozen=True, slots=True)
class Sorted:
    """numbers: `blocks`, `order` and what sorting works with, one after the other."""

    numbers: torch.Tensor
    num_pairs: int
    max_blocks: int

    @property
    def order(self) -> torch.Tensor:
        """[P] int32: pairs by expert."""
        first = 3 * self.max_blocks
        return self.numbers[first : first + self.num_pairs]

    @property
    def blocks(self) -> torch.Tensor:
        """[3, max_blocks] int32: of each block of rows its expert (-1: not used), its first row in `order`, and the row
        behind the last one of its expert."""
        return self.numbers[: 3 * self.max_blocks].view(3, -1)


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Most blocks that any routing needs: each expert in use fills all of its blocks but one."""
    used = min(num_pairs, num_experts)
    return used + (num_pairs - used) // block_m


class Sorting:
    """For one number of pairs: what is launched, found once.

    Calling it: ids [T, K] of `dtype`, int64 or int32, contiguous, T * K = num_pairs > 0 -> the numbers of Sorted, 3 *
    max_blocks for the blocks, num_pairs for the order, and the rest.
    """

    __slots__ = ("_chunks", "_count", "_place", "_size", "max_blocks", "num_pairs")

    def __init__(
        self, num_pairs: int, num_experts: int, block_m: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pairs = num_pairs
        self.max_blocks = max_blocks(num_pairs, num_experts, block_m)
        self._chunks = triton.cdiv(num_pairs, CHUNK)
        bins = max(16, triton.next_power_of_2(num_experts))
        chunk = min(CHUNK, triton.next_power_of_2(num_pairs))
        self._size = 3 * self.max_blocks + 2 * num_pairs + 2 * self._chunks * bins
        self._count, self._place = _plan(dtype, device, bins, chunk, block_m, self._chunks == 1)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        device, chunks, num_pairs, num_blocks = ids.get_device(), self._chunks, self.num_pairs, self.max_blocks
        numbers = torch.empty(self._size, dtype=torch.int32, device=ids.device)
        if chunks > 1:
            self._count.start(device, chunks, 1, 1, ids, numbers, num_pairs, num_blocks)
        self._place.start(device, chunks, 1, 1, ids, numbers, num_pairs, chunks, num_blocks)
        return numbers


def sort_by_expert(ids: torch.Tensor, num_experts: int, block_m: int) -> Sorted:
    """ids as in Sorting."""
    sorting = Sorting(ids.numel(), num_experts, block_m, ids.dtype, ids.device)
    return Sorted(sorting(ids), sorting.num_pairs, sorting.max_blocks)


@functools.cache
def _plan(
    dtype: torch.dtype, device: torch.device, bins: int, chunk: int, block_m: int, alone: bool
) -> tuple[Launch, Launch]:
    overlap = dependent(device)
    count = Launch(_count, (bins, chunk, overlap), num_warps=8, pdl=overlap)
    constants = (bins, chunk, block_m, max(1, 4096 // bins), alone, overlap)
    return count, Launch(_place, constants, num_warps=8, pdl=overlap)


@triton.jit
def _ranks(ids, count, num_pairs, chunk, BINS: tl.constexpr, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(experts, ranks among the chunk's pairs of that expert), [CHUNK] each. count [BINS]: gets the chunk's pairs of
    each expert; written and read here, by this program alone."""
    tl.store(count + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(ids + pair, mask=pair < num_pairs, other=0).to(tl.int32)
    tl.debug_barrier()
    rank = tl.atomic_add(count + expert, 1, mask=pair < num_pairs, sem="relaxed")
    tl.debug_barrier()
    return expert, rank


@triton.jit
def _parts(numbers, num_pairs, num_blocks):  # type: ignore[no-untyped-def]
    """(order [P], ranks [P], counts [2, chunks, BINS]); before them lie the blocks."""
    order = numbers + 3 * num_blocks
    return order, order + num_pairs, order + 2 * num_pairs


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _count(  # type: ignore[no-untyped-def]
    ids, numbers, num_pairs, num_blocks, BINS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr
):
    """Grid (chunks,): counts and ranks as in `_ranks`, of each chunk."""
    begin(PDL)
    _, ranks, counts = _parts(numbers, num_pairs, num_blocks)
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    _, rank = _ranks(ids, counts + chunk * BINS, num_pairs, chunk, BINS, CHUNK)
    tl.store(ranks + pair, rank, mask=pair < num_pairs)


@triton.jit(do_not_specialize=["num_pairs", "num_chunks", "num_blocks"])
def _place(  # type: ignore[no-untyped-def]
    ids, numbers, num_pairs, num_chunks, num_blocks,
    BINS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, ALONE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (chunks,): each program writes the places of its chunk's pairs, the first one also the blocks.
    ALONE: the only one, which counts by itself. The second half of the counts is for looking up."""
    begin(PDL)
    blocks = numbers
    order, ranks, counts = _parts(numbers, num_pairs, num_blocks)
    chunk = tl.program_id(0)
    bins = tl.arange(0, BINS)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    before = tl.zeros([BINS], tl.int32)  # pairs of each expert in earlier chunks
    if ALONE:
        expert, rank = _ranks(ids, counts, num_pairs, 0, BINS, CHUNK)
        total = tl.load(counts + bins, cache_modifier=".cg")
    else:
        expert = tl.load(ids + pair, mask=pair < num_pairs, other=0).to(tl.int32)
        rank = tl.load(ranks + pair, mask=pair < num_pairs, other=0)
        total = tl.zeros([BINS], tl.int32)
        for start in range(0, num_chunks, ROWS):
            row = start + tl.arange(0, ROWS)
            some = tl.load(counts + row[:, None] * BINS + bins[None, :], mask=row[:, None] < num_chunks, other=0)
            total += tl.sum(some, axis=0)
            before += tl.sum(tl.where(row[:, None] < chunk, some, 0), axis=0)
    first = tl.cumsum(total, axis=0) - total
    mine = counts + (num_chunks + chunk) * BINS
    tl.store(mine + bins, first + before)
    tl.debug_barrier()
    place = tl.load(mine + expert, cache_modifier=".cg") + rank
    tl.store(order + place, pair, mask=pair < num_pairs)
    if chunk == 0:
        num = (total + BLOCK_M - 1) // BLOCK_M
        block = tl.cumsum(num, axis=0) - num
        for step in range(tl.max(num, axis=0)):
            used = step < num
            tl.store(blocks + block + step, bins, mask=used)
            tl.store(blocks + num_blocks + block + step, first + step * BLOCK_M, mask=used)
            tl.store(blocks + 2 * num_blocks + block + step, first + total, mask=used)
        for start in range(tl.sum(num, axis=0), num_blocks, BINS):
            tl.store(blocks + start + bins, tl.full([BINS], -1, tl.int32), mask=start + bins < num_blocks)
