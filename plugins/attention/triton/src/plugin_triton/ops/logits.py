"""What is done to logits beside drawing: penalties, masks, log-probabilities."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch
from plugin_triton.ops.noise import log

# ruff: noqa: N803
_BLOCK = 2048


@triton.jit
def penalize_kernel(  # type: ignore[no-untyped-def]
    logits, counts, in_prompt, repetition, frequency, presence,
    STRIDE: tl.constexpr, COUNTS_STRIDE: tl.constexpr, PROMPT_STRIDE: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """In place. Grid (rows, cdiv(SIZE, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = cols < SIZE
    release(PDL)
    wait(PDL)
    scale, often, once = tl.load(repetition + row), tl.load(frequency + row), tl.load(presence + row)
    x = tl.load(logits + row * STRIDE + cols, mask=ok, other=0.0)
    count = tl.load(counts + row * COUNTS_STRIDE + cols, mask=ok, other=0)
    seen = (count > 0) | (tl.load(in_prompt + row * PROMPT_STRIDE + cols, mask=ok, other=0) != 0)
    x = tl.where(seen, tl.where(x > 0, x / scale, x * scale), x)
    x = x - (often * count.to(tl.float32) + tl.where(count > 0, once, 0.0))
    tl.store(logits + row * STRIDE + cols, x, mask=ok)


@triton.jit
def mask_kernel(  # type: ignore[no-untyped-def]
    logits, words, STRIDE: tl.constexpr, WORDS_STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """In place: -inf where the token's bit is not set. Grid (rows, cdiv(SIZE, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = cols < SIZE
    release(PDL)
    wait(PDL)
    word = tl.load(words + row * WORDS_STRIDE + cols // 32, mask=ok, other=0)
    forbidden = ((word >> (cols % 32)) & 1) == 0
    tl.store(logits + row * STRIDE + cols, float("-inf"), mask=ok & forbidden)


@triton.jit
def logprob_kernel(  # type: ignore[no-untyped-def]
    logits, tokens, totals, chosen, STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """totals [B] = logsumexp of each row, chosen [B] = the token's logit minus it. Grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    release(PDL)
    wait(PDL)
    start = logits + row * STRIDE
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(start + cols, mask=cols < SIZE, other=float("-inf")).to(tl.float32))
    best = tl.max(largest, axis=0)
    mass = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        x = tl.load(start + cols, mask=cols < SIZE, other=float("-inf")).to(tl.float32)
        mass += tl.exp(x - best)
    total = best + log(tl.sum(mass, axis=0))
    tl.store(totals + row, total)
    token = tl.load(tokens + row)
    tl.store(chosen + row, tl.load(start + token).to(tl.float32) - total)


def penalize(
    logits: torch.Tensor,
    counts: torch.Tensor,
    in_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """logits [B, V] float32, in place; counts [B, V] int32, in_prompt [B, V] bool, the others [B] float32."""
    if logits.dtype is not torch.float32 or logits.stride(1) != 1 or counts.stride(1) != 1 or in_prompt.stride(1) != 1:
        return reference.penalize(logits, counts, in_prompt, repetition, frequency, presence)
    num_rows, size = logits.shape
    if num_rows and size:
        strides = (logits.stride(0), counts.stride(0), in_prompt.stride(0))
        types = (counts.dtype, repetition.dtype, frequency.dtype, presence.dtype)
        launch = _plan(penalize_kernel, logits.device, types, strides, size)
        launch.start(logits.get_device(), num_rows, -(-size // _BLOCK), 1, logits, counts, in_prompt.view(torch.int8),
                     repetition, frequency, presence)  # fmt: skip
    return logits


def mask_tokens(logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """logits [M, V] float32, in place; words [M, W] int32."""
    if logits.dtype is not torch.float32 or logits.stride(1) != 1 or words.stride(1) != 1:
        return reference.mask_tokens(logits, words)
    num_rows, size = logits.shape
    if num_rows and size:
        launch = _plan(mask_kernel, logits.device, (words.dtype,), (logits.stride(0), words.stride(0)), size)
        launch.start(logits.get_device(), num_rows, -(-size // _BLOCK), 1, logits, words)
    return logits


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [B, V], tokens [B] int64 -> ([B] float32, [B, K] int64, [B, K] float32), K = min(num_top, V)."""
    if logits.dtype not in FLOATS or logits.stride(1) != 1:
        return reference.token_logprobs(logits, tokens, num_top)
    num_rows, size = logits.shape
    # Each begins at a multiple of 16 bytes, for which the kernel is compiled.
    both = torch.empty((2, -(-num_rows // 4) * 4), dtype=torch.float32, device=logits.device)
    totals, chosen = both[:, :num_rows]
    if num_rows:
        launch = _plan(logprob_kernel, logits.device, (logits.dtype, tokens.dtype), (logits.stride(0),), size)
        launch.start(logits.get_device(), num_rows, 1, 1, logits, tokens, totals, chosen)
    top, ids = torch.topk(logits, min(num_top, size), dim=-1)
    return chosen, ids, top.float() - totals[:, None]


@functools.cache
def _plan(
    kernel: object, device: torch.device, types: tuple[torch.dtype, ...], strides: tuple[int, ...], size: int
) -> Launch:
    pdl = dependent(device)
    return Launch(kernel, (*strides, size, _BLOCK, pdl), num_warps=8, pdl=pdl)
