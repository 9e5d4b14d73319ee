"""The Triton kernel behind `store_kv`."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _store(
    k, v, k_pages, v_pages, slots, k_stride, v_stride,
    k_width: tl.constexpr, v_width: tl.constexpr, block: tl.constexpr,
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
    k, v = _heads_together(k), _heads_together(v)
    if not k.shape[0]:
        return
    k_width, v_width = k.shape[1] * k.shape[2], v.shape[1] * v.shape[2]
    block = triton.next_power_of_2(max(k_width, v_width))
    _store[(k.shape[0],)](
        k, v, k_pages, v_pages, slots, k.stride(0), v.stride(0), k_width, v_width, block,
        num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip


def _heads_together(x: torch.Tensor) -> torch.Tensor:
    """x [T, H, D] with a token's heads next to each other; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
