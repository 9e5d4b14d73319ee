"""The Triton kernel behind `store_kv`."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from plugin_fa3.launch import Launch


@triton.jit
def _store(
    k, v, k_pages, v_pages, slots,
    k_stride: tl.constexpr, v_stride: tl.constexpr, k_width: tl.constexpr, v_width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A token a program: its heads lie next to each other in the pages and in k and v."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    at = tl.arange(0, block)
    key = tl.load(k + row * k_stride + at, mask=at < k_width)
    value = tl.load(v + row * v_stride + at, mask=at < v_width)
    tl.store(k_pages + slot * k_width + at, key, mask=at < k_width)
    tl.store(v_pages + slot * v_width + at, value, mask=at < v_width)


def store(k: torch.Tensor, v: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, slots: torch.Tensor) -> None:
    """As `store_kv`; the pages are contiguous."""
    (num_tokens, *k_heads), v_shape = k.shape, v.shape
    if not num_tokens:
        return
    k_strides, v_strides = k.stride(), v.stride()
    if k_strides[2] != 1 or k_strides[1] != k_heads[1]:  # a token's heads next to each other; tokens may lie apart
        k = k.contiguous()
        k_strides = k.stride()
    if v_strides[2] != 1 or v_strides[1] != v_shape[2]:
        v = v.contiguous()
        v_strides = v.stride()
    sizes = (k_strides[0], v_strides[0], k_heads[0] * k_heads[1], v_shape[1] * v_shape[2])
    device = k.get_device()
    _plan(device, (k.dtype, v.dtype, k_pages.dtype, v_pages.dtype, slots.dtype), sizes).start(
        device, num_tokens, 1, 1, k, v, k_pages, v_pages, slots
    )


@functools.cache
def _plan(device: int, types: tuple[torch.dtype, ...], sizes: tuple[int, int, int, int]) -> Launch:
    block = triton.next_power_of_2(max(sizes[2:]))
    return Launch(_store, (*sizes, block), num_warps=max(1, min(8, block // 256)))
