"""Rows that are moved: keys and values into the cache, embeddings out of their table."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import Launch

# ruff: noqa: N803


@triton.jit
def store_kv_kernel(  # type: ignore[no-untyped-def]
    k, v, k_cache, v_cache, slots,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr,
    K_SIZE: tl.constexpr, V_SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, blocks of the longer row). Rows of K_SIZE and V_SIZE elements, *_STRIDE apart in k and v and *_ROW
    apart in the caches."""
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    release(PDL)
    wait(PDL)
    slot = tl.load(slots + token).to(tl.int64)
    key = tl.load(k + token * K_STRIDE + cols, mask=cols < K_SIZE)
    value = tl.load(v + token * V_STRIDE + cols, mask=cols < V_SIZE)
    tl.store(k_cache + slot * K_ROW + cols, key.to(k_cache.dtype.element_ty), mask=cols < K_SIZE)
    tl.store(v_cache + slot * V_ROW + cols, value.to(v_cache.dtype.element_ty), mask=cols < V_SIZE)


@triton.jit
def embedding_kernel(  # type: ignore[no-untyped-def]
    ids, weight, y, STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """y [T, SIZE] = rows `ids` of weight, which are STRIDE apart. Grid (T, cdiv(SIZE, BLOCK))."""
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    release(PDL)
    wait(PDL)
    row = tl.load(ids + token).to(tl.int64)
    tl.store(y + token * SIZE + cols, tl.load(weight + row * STRIDE + cols, mask=cols < SIZE), mask=cols < SIZE)


def store_kv(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """k [T, H, D], v [T, H, Dv] into rows `slots` [T] (int64 or int32) of k_cache [S, H, D], v_cache [S, H, Dv]."""
    if not (_dense(k) and _dense(v) and _dense(k_cache) and _dense(v_cache) and slots.is_contiguous()):
        reference.store_kv(k, v, k_cache, v_cache, slots)
        return
    if not k.shape[0]:
        return
    sizes = (k.stride(0), v.stride(0), k_cache.stride(0), v_cache.stride(0), k[0].numel(), v[0].numel())
    types = (k.dtype, v.dtype, k_cache.dtype, v_cache.dtype, slots.dtype)
    launch, blocks = _store_plan(k.device, types, sizes)
    launch.start(k.get_device(), k.shape[0], blocks, 1, k, v, k_cache, v_cache, slots)


def _dense(x: torch.Tensor) -> bool:
    """Whether the heads of x [T, H, D] lie beside one another."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]


@functools.cache
def _store_plan(device: torch.device, types: tuple[torch.dtype, ...], sizes: tuple[int, ...]) -> tuple[Launch, int]:
    longer = max(sizes[4:])
    block = min(2048, triton.next_power_of_2(longer))
    pdl = dependent(device)
    launch = Launch(store_kv_kernel, (*sizes, block, pdl), num_warps=max(1, min(8, block // 256)), pdl=pdl)
    return launch, -(-longer // block)


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ids [T], weight [V, H] -> [T, H]."""
    if ids.dim() != 1 or weight.stride(1) != 1 or not ids.is_contiguous():
        return reference.embedding(ids, weight)
    size = weight.shape[1]
    y = torch.empty((ids.shape[0], size), dtype=weight.dtype, device=weight.device)
    if ids.shape[0]:
        launch, blocks = _embedding_plan(weight.device, (ids.dtype, weight.dtype), size, weight.stride(0))
        launch.start(weight.get_device(), ids.shape[0], blocks, 1, ids, weight, y)
    return y


@functools.cache
def _embedding_plan(device: torch.device, types: tuple[torch.dtype, ...], size: int, stride: int) -> tuple[Launch, int]:
    block = min(2048, triton.next_power_of_2(size))
    pdl = dependent(device)
    launch = Launch(embedding_kernel, (stride, size, block, pdl), num_warps=max(1, min(8, block // 256)), pdl=pdl)
    return launch, -(-size // block)
