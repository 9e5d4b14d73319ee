"""Tokens by expert, on the device alone: count, prefix sum, place. Launch shapes depend on sizes only, so that it can
be captured in a graph.

A pair is one token's choice of one expert, numbered token * K + choice. Sorting is stable: pairs of an expert stay in
their order, whatever the timing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from plugin_triton.moe import launch

CHUNK = 256  # pairs that one program places
FEW_PAIRS = 2048  # up to here every program counts all pairs by itself, which saves a launch


@dataclass(frozen=True, slots=True)
class Sorted:
    """order [P] int32: pairs by expert. blocks [3, max_blocks] int32: of each block of rows its expert (-1: not used),
    its first row in `order`, and the row behind the last one of its expert."""

    order: torch.Tensor
    blocks: torch.Tensor
    max_blocks: int


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Most blocks that any routing needs: each expert in use fills all of its blocks but one."""
    used = min(num_pairs, num_experts)
    return used + (num_pairs - used) // block_m


def sort_by_expert(ids: torch.Tensor, num_experts: int, block_m: int, overlap: bool) -> Sorted:
    """ids [T, K] int64 or int32, contiguous, T * K > 0."""
    num_pairs = ids.numel()
    num_blocks = max_blocks(num_pairs, num_experts, block_m)
    chunks = triton.cdiv(num_pairs, CHUNK)
    counted = num_pairs > FEW_PAIRS
    bins = max(32, triton.next_power_of_2(num_experts))
    order = torch.empty(num_pairs, dtype=torch.int32, device=ids.device)
    blocks = torch.empty(3, num_blocks, dtype=torch.int32, device=ids.device)
    counts = order  # not read
    if counted:
        counts = torch.empty(chunks, bins, dtype=torch.int32, device=ids.device)
        _count[(chunks,)](
            ids, counts, num_pairs, BINS=bins, CHUNK=CHUNK, PDL=overlap, num_warps=4, **launch.options(overlap)
        )
    _place[(chunks,)](
        ids, counts, order, blocks, num_pairs, chunks, num_blocks, triton.cdiv(num_blocks, chunks),
        NUM_EXPERTS=num_experts, BINS=bins, CHUNK=CHUNK, SUB=max(16, min(128, 16384 // bins)),
        ROWS=max(1, 8192 // bins), BLOCK_M=block_m, COUNTED=counted, PDL=overlap, num_warps=8,
        **launch.options(overlap),
    )  # fmt: skip
    return Sorted(order, blocks, num_blocks)


@triton.jit(do_not_specialize=["num_pairs"])
def _count(ids, counts, num_pairs, BINS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr):
    """counts[chunk, expert]: pairs of that expert in that chunk."""
    launch.begin(PDL)
    chunk = tl.program_id(0)
    pairs = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = pairs < num_pairs
    expert = tl.load(ids + pairs, mask=inside, other=0).to(tl.int32)
    tl.store(counts + chunk * BINS + tl.arange(0, BINS), tl.histogram(expert, BINS, mask=inside))


@triton.jit(do_not_specialize=["num_pairs", "num_chunks", "num_blocks", "blocks_per_program"])
def _place(
    ids, counts, order, blocks, num_pairs, num_chunks, num_blocks, blocks_per_program,
    NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, COUNTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Each program writes the places of its chunk's pairs, and a share of the blocks."""
    launch.begin(PDL)
    chunk = tl.program_id(0)
    bins = tl.arange(0, BINS)
    total = tl.zeros([BINS], tl.int32)  # pairs of each expert
    before = tl.zeros([BINS], tl.int32)  # of these, in earlier chunks
    if COUNTED:
        for start in range(0, num_chunks, ROWS):
            row = start + tl.arange(0, ROWS)
            some = tl.load(counts + row[:, None] * BINS + bins[None, :], mask=row[:, None] < num_chunks, other=0)
            total += tl.sum(some, axis=0)
            before += tl.sum(tl.where(row[:, None] < chunk, some, 0), axis=0)
    else:
        for start in range(0, num_pairs, 2 * CHUNK):
            any_pair = start + tl.arange(0, 2 * CHUNK)
            any_expert = tl.load(ids + any_pair, mask=any_pair < num_pairs, other=0).to(tl.int32)
            total += tl.histogram(any_expert, BINS, mask=any_pair < num_pairs)
            before += tl.histogram(any_expert, BINS, mask=any_pair < tl.minimum(num_pairs, chunk * CHUNK))
    first = tl.cumsum(total, axis=0) - total
    num = (total + BLOCK_M - 1) // BLOCK_M
    block_end = tl.cumsum(num, axis=0)
    # Row of a block = its number * BLOCK_M + what this says for its expert.
    shift = first - (block_end - num) * BLOCK_M
    last_block = tl.minimum((chunk + 1) * blocks_per_program, num_blocks)
    for start in range(chunk * blocks_per_program, last_block, SUB):
        block = start + tl.arange(0, SUB)
        owner = tl.sum((block[:, None] >= block_end[None, :]).to(tl.int32), axis=1)
        index = tl.minimum(owner, BINS - 1)
        inside_blocks = block < last_block
        tl.store(blocks + block, tl.where(owner < NUM_EXPERTS, owner, -1), mask=inside_blocks)
        tl.store(blocks + num_blocks + block, block * BLOCK_M + tl.gather(shift, index, 0), mask=inside_blocks)
        tl.store(blocks + 2 * num_blocks + block, tl.gather(first + total, index, 0), mask=inside_blocks)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(ids + pair, mask=pair < num_pairs, other=0).to(tl.int32)
    rank = tl.zeros([CHUNK], tl.int32)  # pairs of the same expert earlier in the chunk
    for start in range(0, CHUNK, 64):
        other = chunk * CHUNK + start + tl.arange(0, 64)
        other_expert = tl.load(ids + other, mask=other < num_pairs, other=-1).to(tl.int32)
        earlier = (expert[:, None] == other_expert[None, :]) & (other[None, :] < pair[:, None])
        rank += tl.sum(earlier.to(tl.int32), axis=1)
    tl.store(order + tl.gather(first + before, expert, 0) + rank, pair, mask=pair < num_pairs)
