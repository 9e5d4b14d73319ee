"""Rows with many new tokens: tiles of queries against all keys before them, those in pages and the step's own.

A tile holds the query heads of one KV head for some tokens of one sequence. Which sequence a tile is in follows from
the prefix sum of the lengths on the device, so nothing is copied for a step. Tiles with most keys come first.
"""

# A constant is asked in an `if` of its own: what is below it is then not compiled.
# ruff: noqa: N803, SIM102
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.attention.blocks import attend, load_queries
from plugin_triton.dependent import release, wait


@triton.jit
def find_sequence(cu_q_lens, first_seq, num_seqs, tile, TOKENS: tl.constexpr):
    """(sequence, its first tile) of a tile. Sequence i has the tiles from cu_q_lens[i] // TOKENS + i on: room for all
    of its tokens, some of which may be without any."""
    base = tl.load(cu_q_lens + first_seq)
    count = 0
    for start in range(0, num_seqs, 128):
        i = start + tl.arange(0, 128)
        begin = tl.load(cu_q_lens + first_seq + i, mask=i < num_seqs, other=0) - base
        count += tl.sum(((begin // TOKENS + i <= tile) & (i < num_seqs)).to(tl.int32), 0)
    index = count - 1
    first = tl.load(cu_q_lens + first_seq + index) - base
    return first_seq + index, first // TOKENS + index


@triton.jit(
    do_not_specialize=["table_stride", "first_seq", "num_seqs", "num_tiles"],
    do_not_specialize_on_alignment=["table", "seq_lens", "cu_q_lens", "sinks"],
)
def prefill_kernel(
    q, q_token_stride, q_head_stride, q_tail, tail_token_stride, tail_head_stride,
    out, out_token_stride, out_head_stride,
    keys, key_stride, key_head_stride, values, value_stride, value_head_stride, v_scale,
    table, table_stride, seq_lens, cu_q_lens, first_seq, num_seqs, num_tiles, sinks, scale, cap,
    GROUP: tl.constexpr, PACK: tl.constexpr, PACKS: tl.constexpr, TOKENS: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    V_DIM: tl.constexpr, V_BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, LATENT: tl.constexpr,
    HISTORY: tl.constexpr, INVARIANT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (num_tiles * KV heads * PACKS), heads side by side. A tile is PACK query heads of a KV head's GROUP, of
    TOKENS tokens.

    PAGE_SIZE 0: the keys and values are the step's own, in order, and first_seq's first token is their row 0.
    HISTORY: "any"; "none" or "some": leave out sequences that have keys of earlier steps, or that have none.
    INVARIANT: a token's numbers do not depend on the tokens beside it, that is on how its sequence is cut into steps:
    all blocks of keys, which begin at the same places for all, go one way. Blocks that a row sees nothing of leave it
    as it is, to the last bit.
    """
    wait(PDL)
    release(PDL)
    across = tl.num_programs(0) // num_tiles
    kv_head, pack = tl.program_id(0) % across // PACKS, tl.program_id(0) % PACKS  # PACKS divides across
    tile = num_tiles - 1 - tl.program_id(0) // across
    seq, first_tile = find_sequence(cu_q_lens, first_seq, num_seqs, tile, TOKENS)
    first_token = tl.load(cu_q_lens + seq)
    num_tokens = tl.load(cu_q_lens + seq + 1) - first_token
    offset = (tile - first_tile) * TOKENS
    if offset >= num_tokens:
        return
    seq_len = tl.load(seq_lens + seq)
    before = seq_len - num_tokens
    if HISTORY == "none":
        if before > 0:
            return
    if HISTORY == "some":
        if before == 0:
            return

    row_of_tile = tl.arange(0, BLOCK_M)
    token, head = offset + row_of_tile // PACK, pack * PACK + row_of_tile % PACK
    valid = (row_of_tile < TOKENS * PACK) & (token < num_tokens) & (head < GROUP)
    positions = before + token
    heads, tokens = kv_head * GROUP + head, (first_token + token).to(tl.int64)
    query = load_queries(q, q_token_stride, q_head_stride, tokens, heads, valid, DIM, DIM_BLOCK)
    tail = query
    if TAIL > 0:
        tail = load_queries(q_tail, tail_token_stride, tail_head_stride, tokens, heads, valid, TAIL, TAIL_BLOCK)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:  # a logit without a value
        peak = tl.load(sinks + heads, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
        total += 1.0
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)

    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    base = (first_token - tl.load(cu_q_lens + first_seq)).to(tl.int64)
    # first .. whole: blocks before some row's window; whole .. diagonal: every row sees all of it.
    position = before + offset
    last_position = tl.minimum(position + TOKENS, seq_len) - 1
    end = last_position + 1
    diagonal = (position + 1) // BLOCK_N * BLOCK_N
    oldest, first, whole = 0, 0, 0
    if WINDOW > 0:
        oldest = tl.maximum(position - WINDOW + 1, 0)
        first = oldest // BLOCK_N * BLOCK_N
    if INVARIANT:
        acc, peak, total = attend(
            query, tail, acc, peak, total, positions, keys, key_stride, values, value_stride,
            table + seq * table_stride, base, first, end, oldest, end, scale, cap, PAGE_SIZE, BLOCK_N,
            DIM, DIM_BLOCK, TAIL, TAIL_BLOCK, V_DIM, V_BLOCK, True, WINDOW, SOFTCAP, LATENT, STAGES,
        )  # fmt: skip
    else:
        if WINDOW > 0:
            whole = tl.maximum(last_position - WINDOW + 1 + BLOCK_N - 1, 0) // BLOCK_N * BLOCK_N
            whole = tl.minimum(tl.maximum(whole, first), (end + BLOCK_N - 1) // BLOCK_N * BLOCK_N)
            diagonal = tl.maximum(diagonal, whole)
            acc, peak, total = attend(
                query, tail, acc, peak, total, positions, keys, key_stride, values, value_stride,
                table + seq * table_stride, base, first, whole, oldest, end, scale, cap, PAGE_SIZE, BLOCK_N,
                DIM, DIM_BLOCK, TAIL, TAIL_BLOCK, V_DIM, V_BLOCK, True, WINDOW, SOFTCAP, LATENT, STAGES,
            )  # fmt: skip
        acc, peak, total = attend(
            query, tail, acc, peak, total, positions, keys, key_stride, values, value_stride,
            table + seq * table_stride, base, whole, diagonal, oldest, end, scale, cap, PAGE_SIZE, BLOCK_N,
            DIM, DIM_BLOCK, TAIL, TAIL_BLOCK, V_DIM, V_BLOCK, False, WINDOW, SOFTCAP, LATENT, STAGES,
        )  # fmt: skip
        acc, peak, total = attend(
            query, tail, acc, peak, total, positions, keys, key_stride, values, value_stride,
            table + seq * table_stride, base, diagonal, end, oldest, end, scale, cap, PAGE_SIZE, BLOCK_N,
            DIM, DIM_BLOCK, TAIL, TAIL_BLOCK, V_DIM, V_BLOCK, True, WINDOW, SOFTCAP, LATENT, STAGES,
        )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None] * v_scale
    dims = tl.arange(0, V_BLOCK)
    target = out + tokens[:, None] * out_token_stride + heads[:, None] * out_head_stride + dims[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=valid[:, None] & (dims < V_DIM)[None, :])
