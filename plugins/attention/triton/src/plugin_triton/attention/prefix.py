"""What several decode rows have in common is read once: their queries share a tile over the keys of the prefix.

("Cascade" or "shared-prefix" attention: Hydragen, arXiv:2402.05099.) Each row's result over the prefix goes where
`decode` looks for it and merges it with the row's own part. Launch shape and addresses depend on the number of rows
alone: a step without a common prefix has tiles without rows.
"""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.attention.blocks import attend, load_queries
from plugin_triton.attention.decode import split_tokens
from plugin_triton.dependent import release, wait


@triton.jit(
    do_not_specialize=["table_stride", "own_splits"],
    do_not_specialize_on_alignment=["table", "shared_lens", "order", "tile_ends"],
)
def prefix_kernel(
    q, q_token_stride, q_head_stride, q_tail, tail_token_stride, tail_head_stride,
    keys, key_stride, key_head_stride, values, value_stride, value_head_stride,
    table, table_stride, scale, cap, parts, logs, shared_lens, order, tile_ends, own_splits,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, PACKS: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    V_DIM: tl.constexpr, V_BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    SHARED_LEAST: tl.constexpr,
    SOFTCAP: tl.constexpr, LATENT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, KV heads * PACKS, most splits of a prefix). Tile i has the rows order[i * ROWS : tile_ends[i]],
    which begin with the same shared_lens[row] tokens, a multiple of SHARED_LEAST; none if tile_ends[i] is i * ROWS."""
    wait(PDL)
    tile, split = tl.program_id(0), tl.program_id(2)
    kv_head, pack = tl.program_id(1) // PACKS, tl.program_id(1) % PACKS
    begin = tile * ROWS
    end = tl.load(tile_ends + tile)
    if end <= begin:
        return
    leader = tl.load(order + begin)
    length = tl.load(shared_lens + leader)
    splits = tl.num_programs(2)
    tokens_each = split_tokens(length, splits, SHARED_LEAST, SHARED_LEAST)
    first = split * tokens_each
    if first >= length:
        return
    release(PDL)
    last = tl.minimum(first + tokens_each, length)
    row_of_tile = tl.arange(0, BLOCK_M)
    place, head = begin + row_of_tile // PACK, pack * PACK + row_of_tile % PACK
    valid = (row_of_tile < ROWS * PACK) & (place < end) & (head < GROUP)
    row = tl.load(order + place, mask=valid, other=0)
    heads = kv_head * GROUP + head
    query = load_queries(q, q_token_stride, q_head_stride, row, heads, valid, DIM, DIM_BLOCK)
    tail = query
    if TAIL > 0:
        tail = load_queries(q_tail, tail_token_stride, tail_head_stride, row, heads, valid, TAIL, TAIL_BLOCK)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
    acc, peak, total = attend(
        query, tail, acc, peak, total, row, keys + kv_head * key_head_stride, key_stride,
        values + kv_head * value_head_stride, value_stride, table + leader * table_stride, 0,
        first, last, first, last, scale, cap, PAGE_SIZE, BLOCK_N, DIM, DIM_BLOCK, TAIL, TAIL_BLOCK, V_DIM, V_BLOCK,
        False, 0, SOFTCAP, LATENT, STAGES,
    )  # fmt: skip
    index = (row * NUM_HEADS + heads) * (own_splits + splits) + own_splits + split
    dims = tl.arange(0, V_BLOCK)
    mask = valid[:, None] & (dims < V_DIM)[None, :]
    tl.store(parts + index[:, None] * V_DIM + dims[None, :], acc / total[:, None], mask=mask)
    tl.store(logs + index, peak + tl.log2(total), mask=valid)
