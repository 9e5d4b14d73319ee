"""Rows with few new tokens: the keys of a sequence are cut into splits, whose results the last one to finish merges.

A launch has the same shape whatever the lengths (rows, heads, splits); how many splits of a row have work follows from
its length on the device, so a recorded step serves every later one. There is no second kernel: a row's splits count
themselves in, and who comes last finds all others' results in memory (Stream-K's way, arXiv:2301.03598).
What several rows have in common may have been attended to by `prefix` already; it is merged in here.
"""

# A constant is asked in an `if` of its own: what is below it is then not compiled.
# ruff: noqa: N803, SIM102
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.attention.blocks import attend, load_queries
from plugin_triton.attention.store import to_cache
from plugin_triton.dependent import release, wait


@triton.jit
def split_tokens(length, splits, least, BLOCK_N: tl.constexpr):
    """Tokens a split of `length` tokens takes: a multiple of BLOCK_N, `least` or more."""
    even = (length + splits - 1) // splits
    return tl.maximum((even + BLOCK_N - 1) // BLOCK_N * BLOCK_N, least)


@triton.jit
def store_row(source, target, scale, DIM: tl.constexpr, BLOCK: tl.constexpr, LIMIT: tl.constexpr):
    """Copy DIM elements into the cache."""
    dims = tl.arange(0, BLOCK)
    x = tl.load(source + dims, mask=dims < DIM)
    tl.store(target + dims, to_cache(x, scale, target.dtype.element_ty, LIMIT), mask=dims < DIM)


@triton.jit
def _weighted(parts, logs, rows, valid, peak, place, end, places_each, V_DIM: tl.constexpr, V_BLOCK: tl.constexpr):
    """[BLOCK_M, V_BLOCK]: the rows' part at `place`, times its weight; zero from `end` on."""
    dims = tl.arange(0, V_BLOCK)
    places = tl.zeros_like(rows) + place
    index = rows * places_each + places
    mask = valid & (places < end)
    size = tl.load(logs + index, mask=mask, other=float("-inf"), cache_modifier=".cg")
    mask = mask[:, None] & (dims < V_DIM)[None, :]
    part = tl.load(parts + index[:, None] * V_DIM + dims[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    return part * tl.exp2(size - peak)[:, None]


@triton.jit
def merged(
    parts, logs, rows, valid, num_own, num_shared, own, places_each,
    PLACES: tl.constexpr, BLOCK_M: tl.constexpr, AT_ONCE: tl.constexpr, V_DIM: tl.constexpr, V_BLOCK: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, V_BLOCK]: sum of the rows' parts, each weighted by its share of the softmax. Of a row's
    places_each, PLACES at most, the first num_own are filled, and from `own` on num_shared."""
    which = tl.arange(0, PLACES)
    there = (which < num_own) | ((which >= own) & (which < own + num_shared))
    places = logs + rows[None, :] * places_each + which[:, None]
    # Read past this processor's cache, which does not see what the others wrote.
    sizes = tl.load(places, mask=there[:, None] & valid[None, :], other=float("-inf"), cache_modifier=".cg")
    peak = tl.max(sizes, 0)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.sum(tl.exp2(sizes - peak[None, :]), 0)
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
    # Several at a time, so that their loads are on the way together; unrolled, because a reduction over a third
    # dimension would go through shared memory.
    for start in range(0, num_own, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            acc += _weighted(parts, logs, rows, valid, peak, start + i, num_own, places_each, V_DIM, V_BLOCK)
    end = own + num_shared
    for start in range(own, end, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            acc += _weighted(parts, logs, rows, valid, peak, start + i, end, places_each, V_DIM, V_BLOCK)
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(
    do_not_specialize=["table_stride", "least", "shared_splits"],
    do_not_specialize_on_alignment=["slots", "table", "seq_lens", "cu_q_lens", "sinks", "shared_lens"],
)
def decode_kernel(
    q, q_token_stride, q_head_stride, q_tail, tail_token_stride, tail_head_stride,
    out, out_token_stride, out_head_stride,
    k, k_token_stride, k_head_stride, v, v_token_stride, v_head_stride, slots,
    keys, key_stride, key_head_stride, values, value_stride, value_head_stride, k_scale, v_scale,
    table, table_stride, seq_lens, cu_q_lens, sinks, scale, cap,
    parts, logs, arrivals, shared_lens, least, shared_splits,
    QUERIES: tl.constexpr, NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, PACKS: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    V_DIM: tl.constexpr, V_BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    SHARED: tl.constexpr, SHARED_LEAST: tl.constexpr, PLACES: tl.constexpr, AT_ONCE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, LATENT: tl.constexpr,
    STORE: tl.constexpr, LIMIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, KV heads * PACKS, most splits of a row, `least` tokens each or more). A tile is PACK of a KV head's
    GROUP query heads, of up to QUERIES tokens.

    STORE (QUERIES is 1): the split that reads a row's newest key writes it first. SHARED: the first shared_lens[row]
    tokens are left out; `prefix` has attended to them, in shared_splits parts at most.
    """
    wait(PDL)
    row, split = tl.program_id(0), tl.program_id(2)
    kv_head, pack = tl.program_id(1) // PACKS, tl.program_id(1) % PACKS
    if QUERIES == 1:
        first_token, num_tokens = row, 1
    else:
        first_token = tl.load(cu_q_lens + row)
        num_tokens = tl.load(cu_q_lens + row + 1) - first_token
    # Before the length is here, so that both are on their way at once.
    row_of_tile = tl.arange(0, BLOCK_M)
    token, head = row_of_tile // PACK, pack * PACK + row_of_tile % PACK
    valid = (token < num_tokens) & (head < GROUP)
    heads, tokens = kv_head * GROUP + head, first_token + token
    query = load_queries(q, q_token_stride, q_head_stride, tokens, heads, valid, DIM, DIM_BLOCK)
    tail = query
    if TAIL > 0:
        tail = load_queries(q_tail, tail_token_stride, tail_head_stride, tokens, heads, valid, TAIL, TAIL_BLOCK)
    seq_len = tl.load(seq_lens + row)
    before = seq_len - num_tokens
    oldest = 0
    if WINDOW > 0:
        oldest = tl.maximum(before - WINDOW + 1, 0)
    start = oldest // BLOCK_N * BLOCK_N
    num_shared = 0
    if SHARED:
        start = tl.load(shared_lens + row)
        num_shared = tl.cdiv(start, split_tokens(start, shared_splits, SHARED_LEAST, SHARED_LEAST))
    splits = tl.num_programs(2)
    tokens_each = split_tokens(seq_len - start, splits, least, BLOCK_N)
    num_splits = tl.cdiv(seq_len - start, tokens_each)
    if split >= num_splits:
        return
    release(PDL)
    first = start + split * tokens_each
    last = tl.minimum(first + tokens_each, seq_len)

    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    if STORE:
        if split == num_splits - 1:
            slot = tl.load(slots + row).to(tl.int64)
            k_row = k + row.to(tl.int64) * k_token_stride + kv_head * k_head_stride
            v_row = v + row.to(tl.int64) * v_token_stride + kv_head * v_head_stride
            store_row(k_row, keys + slot * key_stride, k_scale, DIM, DIM_BLOCK, LIMIT)
            if LATENT:  # k is the latent, v the rotated key, and there are no values
                store_row(v_row, keys + slot * key_stride + DIM, k_scale, TAIL, TAIL_BLOCK, LIMIT)
            else:
                if TAIL > 0:
                    store_row(k_row + DIM, keys + slot * key_stride + DIM, k_scale, TAIL, TAIL_BLOCK, LIMIT)
                store_row(v_row, values + slot * value_stride, v_scale, V_DIM, V_BLOCK, LIMIT)
            tl.debug_barrier()  # other threads of this program read it below

    positions = before + token
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        # A sink is a logit without a value; the first split counts it.
        if split == 0:
            peak = tl.load(sinks + heads, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
            total += 1.0
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
    acc, peak, total = attend(
        query, tail, acc, peak, total, positions, keys, key_stride, values, value_stride, table + row * table_stride, 0,
        first, last, oldest, last, scale, cap, PAGE_SIZE, BLOCK_N, DIM, DIM_BLOCK, TAIL, TAIL_BLOCK, V_DIM, V_BLOCK,
        True, WINDOW, SOFTCAP, LATENT, STAGES,
    )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]

    dims = tl.arange(0, V_BLOCK)
    writable = valid[:, None] & (dims < V_DIM)[None, :]
    last_one = num_splits + num_shared == 1
    if num_splits + num_shared > 1:
        rows, places_each = tokens * NUM_HEADS + heads, splits + shared_splits
        index = rows * places_each + split
        tl.store(parts + index[:, None] * V_DIM + dims[None, :], acc, mask=writable)
        tl.store(logs + index, tl.where(total == 0.0, float("-inf"), peak + tl.log2(total)), mask=valid)
        tl.debug_barrier()  # all threads have written before one of them counts this split in
        counter = arrivals + row * tl.num_programs(1) + tl.program_id(1)
        last_one = tl.atomic_add(counter, 1, sem="acq_rel") == num_splits - 1
        if last_one:
            tl.store(counter, 0)  # for the next launch
            acc = merged(
                parts, logs, rows, valid, num_splits, num_shared, splits, places_each, PLACES, BLOCK_M, AT_ONCE,
                V_DIM, V_BLOCK,
            )  # fmt: skip
    if last_one:
        target = out + tokens.to(tl.int64)[:, None] * out_token_stride + heads[:, None] * out_head_stride
        tl.store(target + dims[None, :], (acc * v_scale).to(out.dtype.element_ty), mask=writable)
