"""Recorded steps: what they give is what eager steps give, whatever stands in padding rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_driver import Driver, Job

from core.interfaces.batch import BatchLayout
from core.interfaces.errors import PluginError
from core.interfaces.hardware import EngineFacts
from core.runner.executor import InProcessExecutor
from core.runner.runner import ModelRunner
from core.testing.capturable_attention import CapturableAttention
from core.testing.contracts.hardware_steps import decode_all
from core.testing.dense_attention import DenseAttention
from core.testing.mock_graphs import MockGraphHardware, MockGraphs
from core.testing.mock_model import MockConfig, reference_greedy
from core.testing.mock_runner import build_mock_runner

TWO_GROUPS = MockConfig(vocab_size=97, windows=(None, 5), context_length=64)


def make(
    config: MockConfig = TWO_GROUPS, attention: Any = CapturableAttention, page_size: int = 4, max_running: int = 6
) -> tuple[ModelRunner, MockGraphHardware]:
    hardware = MockGraphHardware()
    runner = build_mock_runner(
        config, hardware=hardware, max_running=max_running, page_size=page_size, attention=attention
    )
    runner.warm_up()
    return runner, hardware


def some_jobs(config: MockConfig, count: int, seed: int) -> list[Job]:
    rng = random.Random(seed)
    return [
        Job([rng.randrange(config.vocab_size) for _ in range(rng.randint(1, 12))], rng.randint(1, 16), seed=i)
        for i in range(count)
    ]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    page_size=st.sampled_from([1, 3, 4, 16]),
    depth=st.integers(1, 3),
    windows=st.sampled_from([(None,), (7,), (None, 3)]),
)
def test_random_plans_give_the_eager_tokens(
    seed: int, page_size: int, depth: int, windows: tuple[int | None, ...]
) -> None:
    config = MockConfig(vocab_size=61, windows=windows, context_length=40)
    runner, hardware = make(config, page_size=page_size)
    jobs = some_jobs(config, 8, seed)
    num_pages = 1 + 6 * runner.config.max_pages_per_seq
    Driver(
        InProcessExecutor(runner), num_groups=len(windows), num_slots=6, num_pages=num_pages, page_size=page_size,
        budget=40, depth=depth, seed=seed,
    ).run(jobs)  # fmt: skip
    for job in jobs:
        assert job.tokens == reference_greedy(config, job.prompt, job.num_tokens)
    assert sum(hardware.made.replays.values()) == runner.stats.replayed_steps


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_every_number_of_rows(count: int) -> None:
    runner, hardware = make()
    prompts = [[7 * i + 1, 3, i] * (i + 1) for i in range(count)]
    tokens = decode_all(runner, prompts, 9)
    assert tokens == [reference_greedy(TWO_GROUPS, prompt, 9) for prompt in prompts]
    size = next((size for size in (1, 2, 4) if size >= count), None)
    expected = {1: 0, 2: 0, 4: 0} | ({size: 8} if size else {})
    assert hardware.made.replays == expected, "padded to the next size; beyond the largest, eager"
    assert hardware.made.captured == [4, 2, 1], "largest first"


def test_padding_rows_are_those_that_the_interface_defines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BatchLayout] = []
    plan = CapturableAttention.plan

    def noted(self: CapturableAttention, layout: BatchLayout) -> None:
        if layout.captured:
            seen.append(replace(layout))
        plan(self, layout)

    monkeypatch.setattr(CapturableAttention, "plan", noted)
    runner, _ = make(MockConfig(vocab_size=61, context_length=40))
    (at_capture,) = [layout for layout in seen if layout.num_seqs == 4]
    decode_all(runner, [[1, 2, 3], [4], [5, 6]], 2)
    layout = seen[-1]
    assert layout.num_decodes == layout.num_seqs == layout.num_tokens == 4
    assert layout.q_lens.tolist() == [1, 1, 1, 1]
    assert layout.seq_lens.tolist() == [4, 2, 3, 1]
    assert layout.page_table[3].tolist() == [0] * layout.page_table.shape[1]
    assert layout.slot_mapping[3] == 0
    for name in ("slot_mapping", "device_page_table", "device_seq_lens", "device_cu_q_lens"):
        kept, now = getattr(at_capture, name), getattr(layout, name)
        assert kept.data_ptr() == now.data_ptr(), f"{name} stands where it stood when the step was recorded"
    assert layout.device_page_table is not None
    assert layout.device_seq_lens is not None
    assert layout.device_seq_lens.tolist() == [4, 2, 3, 1]
    columns = layout.page_table.shape[1]
    assert layout.device_page_table[:, :columns].tolist() == layout.page_table.tolist()
    assert layout.device_page_table.shape == (4, runner.config.max_pages_per_seq)


def test_steps_with_prefills_are_not_replayed() -> None:
    runner, hardware = make()
    decode_all(runner, [[1, 2, 3]], 1)
    assert sum(hardware.made.replays.values()) == 0
    assert runner.stats.replayed_steps == 0


def test_a_backend_that_cannot_be_recorded_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        runner, hardware = make(attention=DenseAttention)
    assert "DenseAttention does not work in a recorded step" in caplog.text
    tokens = decode_all(runner, [[1, 2, 3]], 4)
    assert tokens == [reference_greedy(TWO_GROUPS, [1, 2, 3], 4)]
    assert hardware.made.captured == []


def test_nothing_is_replayed_before_it_is_recorded() -> None:
    hardware = MockGraphHardware()
    runner = build_mock_runner(TWO_GROUPS, hardware=hardware, attention=CapturableAttention)
    tokens = decode_all(runner, [[1, 2, 3]], 4)
    assert tokens == [reference_greedy(TWO_GROUPS, [1, 2, 3], 4)]
    assert runner.stats.replayed_steps == 0


@pytest.mark.parametrize("sizes", [(2, 1), (0, 1), (1, 1), (1, 7)])
def test_impossible_sizes_are_an_error(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockGraphHardware, "graphs", lambda self, facts: MockGraphs(sizes))
    with pytest.raises(PluginError, match=r"MockGraphs records steps of .* between 1 and 6"):
        make()


def test_the_mock_records_as_a_device_does() -> None:
    """No look at values, no code at replay, inputs read in place: what passes with it has a chance on a device."""
    graphs = MockGraphs((1,))
    x, calls = torch.ones(3), []

    def run() -> torch.Tensor:
        calls.append(1)
        y = x.view(3, 1) * torch.arange(2.0)
        y.add_(1)
        return y.sum(0)

    graphs.capture(1, run)
    x.fill_(2)
    assert graphs.replay(1).tolist() == [3, 9]
    x.fill_(-1)
    assert graphs.replay(1).tolist() == [3, 0]
    assert len(calls) == 1
    for looks in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero()):
        with pytest.raises(RuntimeError, match="looks at values"):
            graphs.capture(1, looks)


def test_facts_tell_the_largest_step() -> None:
    facts: list[EngineFacts] = []

    class Asking(MockGraphHardware):
        def graphs(self, facts_given: EngineFacts) -> MockGraphs:
            facts.append(facts_given)
            return super().graphs(facts_given)

    build_mock_runner(TWO_GROUPS, hardware=Asking(), max_running=5, attention=CapturableAttention)
    assert [f.max_seqs for f in facts] == [5]
