"""Latent attention of the plain-PyTorch backend against float64: absorbed, expanded, and the choice between them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.attention import latent
from core.attention.latent import LatentShape
from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionBackend
from core.interfaces.spec import StateKind
from core.testing.dense_attention import DenseAttention

from .latent_oracle import LatentWorld, latent_config
from .oracle import relative_error

BACKENDS = pytest.mark.parametrize("backend", [TorchNativeAttention, DenseAttention])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def check(world: LatentWorld, work: list[tuple[int, int]], **options: Any) -> None:
    out, wanted = world.step(work, **options)
    assert relative_error(out, wanted) < TOLERANCE[world.config.dtype]


@BACKENDS
def test_prefill_decode_chunks_and_mixtures(backend: type[AttentionBackend]) -> None:
    world = LatentWorld(backend, latent_config())
    a, b, c = world.new(), world.new(), world.new()
    check(world, [(a, 19)])
    check(world, [(a, 1), (b, 7), (c, 30)])
    check(world, [(a, 1), (b, 9), (c, 2)])
    for _ in range(3):
        check(world, [(a, 1), (b, 1), (c, 1)])


@BACKENDS
def test_after_a_prefix_hit(backend: type[AttentionBackend]) -> None:
    world = LatentWorld(backend, latent_config())
    parent = world.new()
    check(world, [(parent, 13)])
    child = world.fork(parent, 3)
    check(world, [(parent, 1), (child, 6)])
    check(world, [(parent, 1), (child, 1)])


def test_a_long_shared_prefix_is_read_once_by_decodes() -> None:
    world = LatentWorld(TorchNativeAttention, latent_config(page_size=16, num_pages=120))
    parent = world.new()
    check(world, [(parent, 1040)])
    children = [world.fork(parent, 64) for _ in range(3)]
    check(world, [(child, 2) for child in children])
    check(world, [(child, 1) for child in children])
    backend = world.backend
    assert isinstance(backend, TorchNativeAttention)
    (plan,) = backend._latent_plans.values()
    assert [prefix.keys.count for prefix in plan.decodes.shared] == [1024]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("v_dim", [5, 12, 16])
def test_dtypes_and_head_sizes(dtype: torch.dtype, v_dim: int) -> None:
    """Values narrower than keys, as wide, and wider."""
    world = LatentWorld(TorchNativeAttention, latent_config(rank=24, nope_dim=8, v_dim=v_dim, dtype=dtype))
    a, b = world.new(), world.new()
    check(world, [(a, 40), (b, 3)])
    check(world, [(b, 1), (a, 60)])


def test_padding_rows_are_defined() -> None:
    world = LatentWorld(TorchNativeAttention, latent_config())
    a, b = world.new(), world.new()
    out, wanted = world.step([(a, 5), (b, 4)], padding_rows=3)
    assert relative_error(out, wanted) < 1e-6


# Of these sizes, expanding a history pays for many queries and not for few.
SIZES = {"num_heads": 2, "rank": 32, "rope_dim": 4, "nope_dim": 4, "v_dim": 4}


def test_few_queries_after_a_history_are_absorbed_and_many_expanded() -> None:
    world = LatentWorld(TorchNativeAttention, latent_config(**SIZES))
    few, many = world.new(), world.new()
    check(world, [(few, 64), (many, 64)])
    check(world, [(few, 2), (many, 40)])
    backend = world.backend
    assert isinstance(backend, TorchNativeAttention)
    (plan,) = backend._latent_plans.values()
    assert [(s.first_row, s.last_row) for s in plan.absorbed] == [(0, 2)]
    assert [(s.first_row, s.last_row, len(s.history)) for s in plan.expanded] == [(2, 42, 1)]


def test_a_long_history_is_expanded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "_EXPAND_BYTES", 0)
    monkeypatch.setattr(latent, "_MIN_EXPAND_TOKENS", 10)
    world = LatentWorld(TorchNativeAttention, latent_config(**SIZES))
    a = world.new()
    check(world, [(a, 64)])
    check(world, [(a, 45)])
    backend = world.backend
    assert isinstance(backend, TorchNativeAttention)
    (plan,) = backend._latent_plans.values()
    assert [block.count for block in plan.expanded[0].history] == [10, 10, 10, 10, 10, 10, 4]


def test_where_parts_cannot_be_merged_every_chunk_is_absorbed() -> None:
    """The rule of devices whose fused kernels give no log-sum-exp, on this one."""
    world = LatentWorld(TorchNativeAttention, latent_config(**SIZES))
    backend = world.backend
    assert isinstance(backend, TorchNativeAttention)
    planner = backend._latent[3]
    planner._rule = dataclasses.replace(planner._rule, merges=False)
    a, b = world.new(), world.new()
    check(world, [(a, 64)])
    check(world, [(a, 600), (b, 5)])
    (plan,) = backend._latent_plans.values()
    assert [(s.first_row, s.last_row) for s in plan.absorbed] == [(0, 600)]
    assert len(plan.absorbed[0].plan.masked) == 2
    assert len(plan.expanded) == 1


def test_the_choice_counts_multiplications() -> None:
    shape = LatentShape(num_heads=20, rank=512, rope_dim=64, nope_dim=192, v_dim=256)
    assert shape.absorbs(8, 4096)
    assert not shape.absorbs(2048, 4096)
    assert not shape.absorbs(100, 0)


def test_memory_is_what_page_bytes_says() -> None:
    config = latent_config()
    backend = TorchNativeAttention(config, LatentWorld(TorchNativeAttention, config).backend.ctx)
    (buffer,) = backend.allocate()[3]
    for ranks in (1, 2, 4):
        page = TorchNativeAttention.page_bytes(config.group, config.page_size, 4, ranks)
        assert buffer.numel() * buffer.element_size() == page * config.num_pages


@pytest.mark.parametrize("changes", [{"window": 4}, {"softcap": 20.0}, {"has_sinks": True}])
def test_what_it_cannot_do_is_rejected(changes: dict[str, Any]) -> None:
    assert StateKind.MLA_LATENT in TorchNativeAttention.capabilities.state_kinds
    reason = TorchNativeAttention.rejects(latent_config(**changes))
    assert reason is not None
    assert "layer 3 has a window, a soft cap or sinks" in reason


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_batch_of_any_sizes(data: st.DataObject) -> None:
    small = st.integers(1, 9)
    config = latent_config(
        num_heads=data.draw(small),
        rank=data.draw(st.integers(1, 40)),
        rope_dim=data.draw(small),
        nope_dim=data.draw(small),
        v_dim=data.draw(st.integers(1, 24)),
        page_size=data.draw(st.sampled_from([1, 3, 4, 16])),
        num_pages=600,
    )
    world = LatentWorld(TorchNativeAttention, config, seed=data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 4))):
        work: dict[int, int] = {}
        for number in range(len(world.sequences)):
            if data.draw(st.booleans()):
                work[number] = data.draw(st.sampled_from([1, 1, 2, 5, 30]))
        work[world.new()] = data.draw(st.sampled_from([1, 2, 9, 40]))
        out, wanted = world.step(sorted(work.items(), key=lambda item: item[1] != 1))
        assert relative_error(out, wanted) < 1e-5
