"""Recorded steps: what they give is what eager steps give, whatever stands in padding rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_driver import Driver, Job

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.batch import BatchLayout
from core.interfaces.errors import PluginError
from core.interfaces.hardware import EngineFacts
from core.interfaces.params import SamplingParams
from core.runner import graphs
from core.runner.executor import InProcessExecutor
from core.runner.runner import ModelRunner
from core.testing.capturable_attention import CapturableAttention
from core.testing.contracts.hardware_steps import decode_all, decode_plans
from core.testing.contracts.host_reads import NoHostReads
from core.testing.dense_attention import DenseAttention
from core.testing.mock_graphs import MockGraphHardware, MockGraphs
from core.testing.mock_model import MockConfig, reference_greedy
from core.testing.mock_runner import build_mock_runner
from core.testing.mock_vendor import MockVendorHardware, VendorAttention

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
    tried = len(hardware.made.captured_pieces)  # each recording once
    assert sum(hardware.made.piece_replays.values()) - tried == runner.stats.pieced_steps > 0


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


def test_steps_with_prefills_are_replayed_in_pieces_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, hardware = make()
    assert hardware.made.captured_pieces == [24, 8, 4], "largest first"
    assert hardware.made.piece_replays == {4: 1, 8: 1, 24: 1}, "each is tried once"
    decode_all(runner, [[1, 2, 3]], 1)
    assert (runner.stats.replayed_steps, runner.stats.pieced_steps) == (0, 1)
    assert hardware.made.piece_replays == {4: 2, 8: 1, 24: 1}, "padded to the next number of tokens"
    decode_all(runner, [list(range(25))], 1)
    assert runner.stats.pieced_steps == 1, "beyond the largest, launched"
    monkeypatch.setattr(MockGraphHardware, "token_sizes", ())
    runner, _ = make()
    decode_all(runner, [[1, 2, 3]], 1)
    assert (runner.stats.replayed_steps, runner.stats.pieced_steps) == (0, 0)


@pytest.mark.parametrize("attention", [CapturableAttention, DenseAttention, TorchNativeAttention])
def test_pieces_work_with_any_attention(attention: Any) -> None:
    config = MockConfig(vocab_size=61, context_length=40)
    runner, _ = make(config, attention=attention)
    jobs = some_jobs(config, 10, 3)
    pages = 1 + 6 * runner.config.max_pages_per_seq
    Driver(InProcessExecutor(runner), num_slots=6, num_pages=pages, budget=24, depth=2, seed=3).run(jobs)
    for job in jobs:
        assert job.tokens == reference_greedy(config, job.prompt, job.num_tokens)
    assert runner.stats.pieced_steps > 3


def test_sizes_are_recorded_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockGraphHardware, "on_demand", True)
    runner, hardware = make()
    assert hardware.made.captured == [1], "by the warm-up"
    prompts = [[1, 2, 3], [4]]
    assert decode_all(runner, prompts, 5) == [reference_greedy(TWO_GROUPS, prompt, 5) for prompt in prompts]
    assert hardware.made.captured == [1, 2]
    assert (runner.stats.replayed_steps, runner.stats.pieced_steps) == (4, 1)


@pytest.mark.parametrize("what", ["capture", "capture_pieces"])
def test_a_size_that_cannot_be_recorded_late_is_launched(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: MockGraphs, size: int, run: Any, variants: Any = None) -> None:
        raise RuntimeError("no memory for a graph")

    monkeypatch.setattr(MockGraphHardware, "on_demand", True)
    monkeypatch.setattr(MockGraphs, what, fails)
    runner, _ = make()
    assert decode_all(runner, [[1, 2, 3]], 5) == [reference_greedy(TWO_GROUPS, [1, 2, 3], 5)]
    assert "cannot be recorded" in caplog.text
    assert "no memory for a graph" in caplog.text
    assert (runner.stats.replayed_steps, runner.stats.pieced_steps) == ((0, 5) if what == "capture" else (4, 0))


class _TwoForms(CapturableAttention):
    """Long steps take another form, which is the same arithmetic. planned: the variant of each captured plan."""

    planned: ClassVar[list[int]] = []

    def variant(self, layout: BatchLayout) -> int:
        return int(layout.seq_lens.max() > 6)

    def plan(self, layout: BatchLayout) -> None:
        if layout.captured:
            assert layout.variant == self.variant(layout)
            self.planned.append(layout.variant)
        super().plan(layout)

    def run(self, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = super().run(q, *args, **kwargs)
        assert self._layout is not None
        return out * 2 / 2 if self._layout.variant else out


def test_each_variant_is_recorded_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, replayed = [], []
    capture, replay = MockGraphs.capture, MockGraphs.replay

    def noted_capture(self: MockGraphs, size: int, run: Any, variants: Any) -> None:
        captured.append((size, variants))
        capture(self, size, run, variants)

    def noted_replay(self: MockGraphs, size: int, variants: Any) -> tuple[torch.Tensor, ...]:
        replayed.append((size, variants))
        return replay(self, size, variants)

    monkeypatch.setattr(MockGraphs, "capture", noted_capture)
    monkeypatch.setattr(MockGraphs, "replay", noted_replay)
    runner, _ = make(attention=_TwoForms)
    assert captured == [(4, (0, 0)), (2, (0, 0)), (1, (0, 0))], "variant 0 at the start, of padding rows"
    replayed.clear()
    for _ in range(2):
        prompts = [[1, 2, 3], [4]]
        assert decode_all(runner, prompts, 8) == [reference_greedy(TWO_GROUPS, prompt, 8) for prompt in prompts]
    assert captured[3:] == [(2, (1, 1))], "once, when a step first asks for it"
    assert replayed == 2 * (3 * [(2, (0, 0))] + 4 * [(2, (1, 1))])


DRAWN = SamplingParams(temperature=0.9, top_k=11, top_p=0.9, logprobs=2)
PENALISED = SamplingParams(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.2, min_tokens=3)
BIASED = SamplingParams(temperature=0.0, logit_bias={5: 2.5}, logprobs=0)


@pytest.mark.parametrize("kind", ["drawn", "mixed"])
def test_rows_that_need_more_than_the_arg_max(kind: str) -> None:
    """A replayed step gives its logits; what is drawn from them is what an eager step draws."""
    rows = {"drawn": [DRAWN], "mixed": [SamplingParams(temperature=0.0), DRAWN, PENALISED, BIASED]}[kind]
    answers = []
    for attention in (CapturableAttention, DenseAttention):  # the second cannot be recorded
        runner, _ = make(attention=attention)
        jobs = some_jobs(TWO_GROUPS, 8, 5)
        for at, job in enumerate(jobs):
            job.params = rows[at % len(rows)]
        pages = 1 + 6 * runner.config.max_pages_per_seq
        Driver(InProcessExecutor(runner), num_groups=2, num_slots=6, num_pages=pages, depth=1, seed=5).run(jobs)
        answers.append([job.tokens for job in jobs])
        found = [value for job in jobs for r, row in job.results if r.logprobs for value in [r.logprobs.chosen[row]]]
        assert any(value == value for value in found)  # some are numbers
    assert runner.stats.replayed_steps == 0
    assert answers[0] == answers[1]


def test_page_tables_are_brought_up_to_date_by_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where more has changed than fits into the step's copy, and on a device with memory of its own."""
    monkeypatch.setattr(graphs, "_CHANGES", 3)
    config = MockConfig(vocab_size=61, windows=(None, 5), context_length=60)
    for hardware in (MockGraphHardware(), MockVendorHardware()):
        runner = build_mock_runner(config, hardware=hardware, max_running=4, page_size=1, attention=CapturableAttention)
        runner.warm_up()
        jobs = some_jobs(config, 12, 11)
        pages = 1 + 4 * runner.config.max_pages_per_seq
        Driver(
            InProcessExecutor(runner), num_groups=2, num_slots=4, num_pages=pages, page_size=1, depth=2, seed=11
        ).run(jobs)
        for job in jobs:
            assert job.tokens == reference_greedy(config, job.prompt, job.num_tokens)
        assert runner.stats.replayed_steps > 5


def test_a_replayed_step_is_one_copy_each_way() -> None:
    hardware = MockVendorHardware()
    runner = build_mock_runner(TWO_GROUPS, hardware=hardware, max_running=4, attention=CapturableAttention)
    runner.warm_up()
    plans = decode_plans(runner, [[1, 2, 3], [4]], 12)
    runner.launch(plans[0]).wait()
    for plan in plans[1:]:
        before = hardware.num_uploads, hardware.num_downloads
        with NoHostReads():
            handle = runner.launch(plan)
        assert (hardware.num_uploads, hardware.num_downloads) == (before[0] + 1, before[1] + 1)
        assert handle.wait().error is None


@pytest.mark.parametrize("params", [DRAWN, PENALISED, BIASED, SamplingParams(top_p=0.8, min_p=0.1)])
@pytest.mark.parametrize("recorded", [True, False])
def test_no_step_looks_at_the_device(params: SamplingParams, recorded: bool) -> None:
    """Between launch and wait, whatever a request asks for."""
    attention = CapturableAttention if recorded else VendorAttention
    hardware = MockVendorHardware()
    runner = build_mock_runner(TWO_GROUPS, hardware=hardware, max_running=4, page_size=8, attention=attention)
    if recorded:
        runner.warm_up()
    plans = decode_plans(runner, [[1, 2, 3], [4]], 5)
    for admission in plans[0].admissions:
        plans[0].admissions[admission.slot] = replace(admission, sampling=params)
    for plan in plans:
        with NoHostReads():
            handle = runner.launch(plan)
        assert handle.wait().error is None
    assert (runner.stats.replayed_steps == 4) is recorded


def test_a_backend_that_cannot_be_recorded_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        runner, hardware = make(attention=DenseAttention)
    assert "DenseAttention does not work in a recorded step" in caplog.text
    tokens = decode_all(runner, [[1, 2, 3]], 4)
    assert tokens == [reference_greedy(TWO_GROUPS, [1, 2, 3], 4)]
    assert hardware.made.captured == []


class _Looks(CapturableAttention):
    """Claims that it can be recorded, and cannot."""

    def run(self, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert q.sum().item() != 0.5
        return super().run(q, *args, **kwargs)


def test_what_cannot_be_recorded_after_all_is_launched(caplog: pytest.LogCaptureFixture) -> None:
    runner, _ = make(attention=_Looks)
    assert "steps of decodes cannot be recorded; they are launched" in caplog.text
    assert "looks at values on the host" in caplog.text
    assert decode_all(runner, [[1, 2, 3]], 4) == [reference_greedy(TWO_GROUPS, [1, 2, 3], 4)]
    assert runner.stats.replayed_steps == 0
    assert runner.stats.pieced_steps == 4, "attention is no part of these"


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


def test_facts_tell_the_largest_step() -> None:
    facts: list[EngineFacts] = []

    class Asking(MockGraphHardware):
        def graphs(self, facts_given: EngineFacts) -> MockGraphs:
            facts.append(facts_given)
            return super().graphs(facts_given)

    build_mock_runner(TWO_GROUPS, hardware=Asking(), max_running=5, attention=CapturableAttention)
    assert [f.max_seqs for f in facts] == [5]
