"""What the attention kernels have in common: one tile of queries against a range of cached keys, softmax on the way.

A tile has M rows: the query heads that share a KV head, of one or more tokens. The softmax runs along with the keys
(Milakov & Gimelshein 2018, arXiv:1805.02867) in powers of two; scores are scaled by `scale * log2(e)` on the host.
Head dims that are no power of two are cut in two parts: the largest power of two that fits, and a tail; so are the
latent and the rotated part of latent attention, where the values are the keys' first part.
"""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.attention.numbers import dot


@triton.jit
def load_queries(q, token_stride, head_stride, tokens, heads, valid, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """[M, BLOCK] of rows (tokens, heads), zero where not valid and past DIM."""
    dims = tl.arange(0, BLOCK)
    pointers = q + tokens[:, None] * token_stride + heads[:, None] * head_stride + dims[None, :]
    return tl.load(pointers, mask=valid[:, None] & (dims < DIM)[None, :], other=0.0)


@triton.jit
def load_rows(base, slots, stride, readable, DIM: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """[N, BLOCK] of the cached rows at `slots`, zero past DIM and, if MASKED, where not readable."""
    dims = tl.arange(0, BLOCK)
    pointers = base + slots[:, None] * stride + dims[None, :]
    if MASKED:
        if DIM == BLOCK:
            return tl.load(pointers, mask=readable[:, None], other=0.0)
        return tl.load(pointers, mask=readable[:, None] & (dims < DIM)[None, :], other=0.0)
    if DIM == BLOCK:
        return tl.load(pointers)
    return tl.load(pointers, mask=(dims < DIM)[None, :], other=0.0)


@triton.jit
def load_pages(table, start, last, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page numbers of the keys at start .. start+BLOCK_N-1, of those before `last`: [BLOCK_N], or one for all."""
    if PAGE_SIZE == 0:
        pages = start
    elif PAGE_SIZE % BLOCK_N == 0:
        pages = tl.load(table + start // PAGE_SIZE, mask=start < last, other=0)
    else:
        at = start + tl.arange(0, BLOCK_N)
        pages = tl.load(table + at // PAGE_SIZE, mask=at < last, other=0)
    return pages


@triton.jit
def attend(
    q, q_tail, acc, peak, total, positions,
    keys, key_stride, values, value_stride, table, base,
    first, last, oldest, end, scale, cap,
    PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    V_DIM: tl.constexpr, V_BLOCK: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, LATENT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Take the keys at positions first .. last-1 into (acc [M, V_BLOCK], peak [M], total [M]).

    q [M, DIM_BLOCK], q_tail [M, TAIL_BLOCK]; positions [M]: of the rows' tokens. table: the sequence's page numbers;
    with PAGE_SIZE 0 its keys lie in order from row `base`. first is a multiple of BLOCK_N. MASKED: a row sees keys up
    to its own position, WINDOW (0: all) of them, and of oldest .. end-1 only; what else is in memory is never read.
    Not MASKED: every row sees every key. Peaks are in powers of two.
    """
    columns = tl.arange(0, BLOCK_N)
    pages = load_pages(table, first, last, PAGE_SIZE, BLOCK_N)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        start = tl.multiple_of(start, BLOCK_N)
        at = start + columns
        readable = (at >= oldest) & (at < end)
        if PAGE_SIZE == 0:
            slots = base + at.to(tl.int64)
        elif PAGE_SIZE % BLOCK_N == 0:
            slots = pages.to(tl.int64) * PAGE_SIZE + (start % PAGE_SIZE + columns)
        else:
            slots = pages.to(tl.int64) * PAGE_SIZE + at % PAGE_SIZE
        # Page numbers are read a turn ahead: a load whose address is another load's result would not be prefetched.
        pages = load_pages(table, start + BLOCK_N, last, PAGE_SIZE, BLOCK_N)
        k = load_rows(keys, slots, key_stride, readable, DIM, DIM_BLOCK, MASKED).to(q.dtype)
        scores = dot(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32))
        if TAIL > 0:
            k_tail = load_rows(keys + DIM, slots, key_stride, readable, TAIL, TAIL_BLOCK, MASKED).to(q.dtype)
            scores = dot(q_tail, tl.trans(k_tail), scores)
        if SOFTCAP:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1), right at both ends without a clamp. 2.885...: 2 / ln(2)
            scores = cap * (1.0 - 2.0 / (tl.exp2(scores * scale * 2.8853900817779268) + 1.0))
            factor = 1.0
        else:
            factor = scale
        if MASKED:
            seen = (at[None, :] <= positions[:, None]) & readable[None, :]
            if WINDOW > 0:
                seen = seen & (at[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
        # A row that has seen nothing yet keeps weight 0: exp2(-inf - -inf) would be no number.
        level = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores * factor - level[:, None])
        shrink = tl.exp2(peak - level)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        if LATENT:
            v = k
        else:
            v = load_rows(values, slots, value_stride, readable, V_DIM, V_BLOCK, MASKED).to(q.dtype)
        acc = dot(weights.to(v.dtype), v, acc)
        peak = new_peak
    return acc, peak, total
