"""Write a step's keys and values into their pages, in one launch where Triton is installed, and read them back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import torch

Store = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


def store_for(device: torch.device) -> Store:
    """What is called as `store_kv`, on `device`."""
    if device.type == "cuda" and has_triton():
        from plugin_fa3.store_triton import store

        return store
    return store_kv


def store_kv(
    k: torch.Tensor, v: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, slots: torch.Tensor
) -> None:
    """k [T, Hkv, D] and v [T, Hkv, Dv], possibly slices of a wider matrix, into pages [P, page_size, Hkv, D or Dv] at
    slots [T] (page * page_size + offset). Rows with the same slot overwrite each other in any order."""
    for new, pages in ((k, k_pages), (v, v_pages)):
        pages.view(-1, *pages.shape[2:]).index_copy_(0, slots.long(), new)


def read_kv(k_pages: torch.Tensor, v_pages: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What lies at slots [T]: k [T, Hkv, D] and v [T, Hkv, Dv], contiguous."""
    k, v = (pages.view(-1, *pages.shape[2:]).index_select(0, slots) for pages in (k_pages, v_pages))
    return k, v


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
