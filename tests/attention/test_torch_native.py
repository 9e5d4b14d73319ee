"""TorchNativeAttention against the float64 oracle, over memory that starts as not-a-number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import core.attention.plan as planning
from core.attention.torch_native import TorchNativeAttention
from tests.attention.oracle import World, make_config, relative_error

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def world(seed: int = 0, **config: object) -> World:
    return World(TorchNativeAttention, make_config(**config), seed)  # type: ignore[arg-type]


def check(made: World, work: list[tuple[int, int]], **how: object) -> None:
    got, want = made.step(work, **how)  # type: ignore[arg-type]
    assert relative_error(got, want) < TOLERANCE[made.config.dtype]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    group, num_kv_heads = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2]))
    return world(
        draw(st.integers(0, 10_000)),
        num_heads=group * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([8, 16])),
        v_head_dim=draw(st.sampled_from([0, 0, 8, 24])),
        page_size=draw(st.integers(1, 33)),
        num_pages=600,
        window=draw(st.sampled_from([None, None, 1, 3, 7, 20])),
        softcap=draw(st.sampled_from([None, None, 0.7, 20.0])),
        has_sinks=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])),
    )


@given(worlds(), st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_mixed_steps(made: World, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        for _ in range(data.draw(st.integers(0 if made.sequences else 1, 3))):
            made.new()
        known = [n for n, sequence in enumerate(made.sequences) if sequence.k]
        decodes = [n for n in known if data.draw(st.booleans())]
        work = [(n, 1) for n in decodes]
        for n in range(len(made.sequences)):
            if n not in decodes and data.draw(st.booleans()):
                work.append((n, data.draw(st.integers(1, 24))))
        if work:
            check(made, work, padding_rows=data.draw(st.integers(0, 2)), stored_before=data.draw(st.booleans()))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_one_request_from_prompt_to_decode(dtype: torch.dtype, page_size: int) -> None:
    made = world(dtype=dtype, page_size=page_size)
    made.new()
    check(made, [(0, 21)])
    for _ in range(5):
        check(made, [(0, 1)])


def test_pages_that_lie_together_are_read_in_place() -> None:
    made = world(page_size=4)
    made.free = list(range(40, 0, -1))
    made.new()
    check(made, [(0, 13)])
    check(made, [(0, 1)])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert plan.decodes[0].keys.index is None


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("chunks", [[5, 6, 13], [1, 23], [23, 1], [8, 8, 8]])
def test_chunks_give_what_one_piece_gives(chunks: list[int], window: int | None, has_sinks: bool) -> None:
    outputs = []
    for pieces in ([sum(chunks)], chunks):
        made = world(window=window, has_sinks=has_sinks)
        q, k, v = made.random(24, 4, 16), made.random(24, 2, 16), made.random(24, 2, 16)
        source = iter([])
        parts, row = [], 0
        made.new()
        for count in pieces:
            source = iter([x[row : row + count].clone() for x in (q, k, v)])
            made.random = lambda *shape: next(source)  # type: ignore[method-assign]  # noqa: B023
            parts.append(made.step([(0, count)])[0])
            row += count
        outputs.append(torch.cat(parts))
    assert relative_error(outputs[1], outputs[0].double()) < 2e-6


@pytest.mark.parametrize("head_dims", [(16, 0), (16, 8)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_a_long_history_is_merged_with_the_chunk(
    head_dims: tuple[int, int], softcap: float | None, has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PREFILL_MASK_ELEMENTS", 0)
    made = world(head_dim=head_dims[0], v_head_dim=head_dims[1], softcap=softcap, has_sinks=has_sinks)
    made.new()
    check(made, [(0, 30)])
    check(made, [(0, 11)])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert bool(plan.causal) == (softcap is None and head_dims == (16, 0))


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_devices_without_a_fused_log_sum_exp(has_sinks: bool, masked: bool) -> None:
    made = world(has_sinks=has_sinks)
    made.backend._rules = {3: planning.Rule(None, masked=masked, merges=False)}  # type: ignore[attr-defined]
    made.new()
    check(made, [(0, 30)])
    check(made, [(0, 11)])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert plan.masked
    check(made, [(0, 1)])


@pytest.mark.parametrize("window", [None, 5, 40])
def test_masked_prefill_in_several_blocks(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PREFILL_BLOCK_ROWS", 7)
    made = world(window=window, softcap=3.0)
    made.new()
    check(made, [(0, 30)])
    check(made, [(0, 19)])


def test_verification_rows_with_a_few_tokens_each() -> None:
    made = world()
    for n in range(3):
        made.new()
        check(made, [(n, 10 + 3 * n)])
    check(made, [(0, 4), (1, 4), (2, 4)])
    check(made, [(0, 1), (1, 3), (2, 1)])


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_prefix_is_read_once(
    dtype: torch.dtype, softcap: float | None, has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "MIN_SHARED_SAVING", 8)
    made = world(dtype=dtype, softcap=softcap, has_sinks=has_sinks, num_pages=128)
    made.new()
    check(made, [(0, 41)])
    made.new()
    check(made, [(1, 9)])
    family = [made.fork(0, pages) for pages in (10, 10, 9)]
    check(made, [(n, 3 + n) for n in family])
    check(made, [(n, 1) for n in family])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert [(p.num_rows, p.keys.count) for p in plan.shared] == [(3, 36)]
    check(made, [(2, 1), (1, 1), (4, 1), (0, 1), (3, 1)])  # a stranger between them
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert [(p.num_rows, p.keys.count) for p in plan.shared] == [(4, 36)]


def test_the_better_of_nested_prefixes_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MIN_SHARED_SAVING", 8)
    made = world(num_pages=128)
    made.new()
    check(made, [(0, 48)])
    other = made.fork(0, 1)  # shares one page only
    check(made, [(other, 48)])
    deep = [made.fork(0, 10), made.fork(0, 10), made.fork(other, 11), made.fork(0, 1)]
    check(made, [(n, 2) for n in deep])
    check(made, [(n, 1) for n in (0, other, *deep)])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert sorted((p.num_rows, p.keys.count) for p in plan.shared) == [(2, 44), (3, 40)]


def test_a_window_reads_no_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MIN_SHARED_SAVING", 1)
    made = world(window=9)
    made.new()
    check(made, [(0, 20)])
    others = [made.fork(0, 4), made.fork(0, 4)]
    check(made, [(n, 2) for n in others])
    check(made, [(n, 1) for n in others])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert not plan.shared


def test_rows_of_unlike_length_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MIN_PADDING_SAVING", 16)
    made = world(num_pages=128)
    for n, length in enumerate([3, 60, 2, 55, 4]):
        made.new()
        check(made, [(n, length)])
    check(made, [(n, 1) for n in range(5)])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert sorted(block.num_rows for block in plan.decodes) == [2, 3]


def test_a_large_batch_is_gathered_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(num_pages=128)
    monkeypatch.setattr(made.backend._planner, "max_block_tokens", 40)  # type: ignore[attr-defined]
    for n in range(7):
        made.new()
        check(made, [(n, 10 + n)])
    check(made, [(n, 1) for n in range(7)])
    (plan,) = made.backend._plans.values()  # type: ignore[attr-defined]
    assert len(plan.decodes) > 2


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
@settings(deadline=None)
def test_splitting_keeps_every_row_once_and_bounds_a_block(lengths: list[int]) -> None:
    array = np.array(lengths, dtype=np.int64)
    groups = planning.split_by_length(array, 4096)
    assert sorted(int(row) for rows in groups for row in rows) == list(range(len(lengths)))
    for rows in groups:
        assert len(rows) == 1 or int(array[rows].max()) * len(rows) <= 4096


def test_padding_decode_rows_use_the_null_page() -> None:
    """Rows that a captured step is padded with: one token, page 0, length 1."""
    made = world()
    made.new()
    check(made, [(0, 6)])
    null = made.new()
    made.sequences[null].pages = [0]
    made.sequences[null].k = [torch.zeros(2, 16)]
    made.sequences[null].v = [torch.zeros(2, 16)]
    made.kv[3][0][:4] = 0
    made.kv[3][1][:4] = 0
    check(made, [(0, 1), (null, 1)])


def test_heads_that_do_not_divide_are_rejected() -> None:
    reason = TorchNativeAttention.rejects(make_config(num_heads=6, num_kv_heads=4))
    assert reason is not None
    assert "6" in reason
    assert TorchNativeAttention.rejects(make_config()) is None


def test_buffers_take_the_bytes_that_the_group_states() -> None:
    made = world(head_dim=8, v_head_dim=24, page_size=5, num_pages=7)
    assert sum(buffer.numel() for buffer in made.kv[3]) == 35 * made.config.group.elements_per_token()
