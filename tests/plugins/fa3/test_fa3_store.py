"""Writing keys and values into pages: the plain way, and the Triton kernel in Triton's interpreter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from plugin_fa3 import store

Store = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


@pytest.fixture(params=["plain", "triton"])
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "plain":
        yield store.store_kv
        return
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is defined
    sys.modules.pop("plugin_fa3.store_triton", None)
    yield importlib.import_module("plugin_fa3.store_triton").store
    sys.modules.pop("plugin_fa3.store_triton", None)


@pytest.mark.parametrize("slot_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("heads", "dim", "v_dim"), [(2, 64, 64), (1, 80, 80), (3, 96, 64)])
def test_rows_go_to_their_slots_and_nowhere_else(
    write: Store, heads: int, dim: int, v_dim: int, slot_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(heads)
    wide = torch.randn(7, 4 * heads, dim, generator=generator).bfloat16()
    k, v = wide[:, heads : 2 * heads], wide[:, 2 * heads : 3 * heads, :v_dim]
    k_pages = torch.randn(5, 16, heads, dim, generator=generator).bfloat16()
    v_pages = torch.randn(5, 16, heads, v_dim, generator=generator).bfloat16()
    slots = torch.randperm(79, generator=generator)[:7].to(slot_dtype) + 1
    want_k, want_v = k_pages.clone().view(-1, heads, dim), v_pages.clone().view(-1, heads, v_dim)
    for row, slot in enumerate(slots.tolist()):
        want_k[slot], want_v[slot] = k[row], v[row]
    write(k, v, k_pages, v_pages, slots)
    assert torch.equal(k_pages.view_as(want_k), want_k)
    assert torch.equal(v_pages.view_as(want_v), want_v)


def test_a_step_without_rows(write: Store) -> None:
    pages = torch.zeros(2, 16, 1, 64)
    write(torch.zeros(0, 1, 64), torch.zeros(0, 1, 64), pages, pages.clone(), torch.zeros(0, dtype=torch.int64))
    assert not pages.any()
