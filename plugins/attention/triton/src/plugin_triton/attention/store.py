"""Write a step's keys and values (or latents and rotated keys) to their slots."""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.attention.numbers import narrowed
from plugin_triton.dependent import release, wait


@triton.jit
def to_cache(x, scale, CACHE: tl.constexpr, LIMIT: tl.constexpr):
    """x in the cache's type, divided by `scale` and kept within its range if that has eight bits (LIMIT > 0)."""
    if LIMIT > 0:
        x = x.to(tl.float32) / scale
        # A comparison with not-a-number is false: it stays.
        x = tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))
    return narrowed(x, CACHE)


@triton.jit(
    do_not_specialize=["first_token", "num_tokens"],
    do_not_specialize_on_alignment=["slots"],
)
def store_kernel(
    k, k_token_stride, k_head_stride, v, v_token_stride, v_head_stride, slots, first_token, num_tokens,
    keys, key_stride, key_head_stride, values, value_stride, value_head_stride, k_scale, v_scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, V_DIM: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, LIMIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program writes BLOCK (token, head) pairs from token `first_token` on."""
    wait(PDL)
    release(PDL)
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token, head = first_token + pair // HEADS, pair % HEADS
    valid = token < num_tokens
    slot = tl.load(slots + token, mask=valid, other=0).to(tl.int64)
    dims = tl.arange(0, DIM_BLOCK)
    mask = valid[:, None] & (dims < DIM)[None, :]
    source = token.to(tl.int64)[:, None] * k_token_stride + head[:, None] * k_head_stride + dims[None, :]
    target = slot[:, None] * key_stride + head[:, None] * key_head_stride + dims[None, :]
    x = tl.load(k + source, mask=mask)
    tl.store(keys + target, to_cache(x, k_scale, keys.dtype.element_ty, LIMIT), mask=mask)
    dims = tl.arange(0, V_BLOCK)
    mask = valid[:, None] & (dims < V_DIM)[None, :]
    source = token.to(tl.int64)[:, None] * v_token_stride + head[:, None] * v_head_stride + dims[None, :]
    target = slot[:, None] * value_stride + head[:, None] * value_head_stride + dims[None, :]
    x = tl.load(v + source, mask=mask)
    tl.store(values + target, to_cache(x, v_scale, values.dtype.element_ty, LIMIT), mask=mask)
