"""ModelRunner end to end: the tokens of every request are those computed without pages, batches or chunks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_driver import Driver, Job

from core.interfaces.errors import ConfigError, EngineError
from core.interfaces.hardware import HardwareBackend
from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, StepPlan
from core.runner.async_executor import ThreadExecutor
from core.runner.executor import Executor, InProcessExecutor
from core.runner.runner import ModelRunner
from core.runner.warm_up import largest_plan
from core.testing.dense_attention import DenseAttention
from core.testing.mock_hardware import MockAsyncHardware, MockHardware
from core.testing.mock_model import MockConfig, reference_greedy, reference_logits
from core.testing.mock_runner import build_mock_runner, mock_runner_config

GREEDY = SamplingParams(temperature=0.0)
TWO_GROUPS = MockConfig(vocab_size=97, windows=(None, 5), context_length=64)


def some_jobs(config: MockConfig, count: int, seed: int, *, preempt: bool = False) -> list[Job]:
    rng = random.Random(seed)
    jobs = []
    for index in range(count):
        prompt = [rng.randrange(config.vocab_size) for _ in range(rng.randint(1, 30))]
        num_tokens = rng.randint(1, 12)
        preempt_at = rng.randint(1, num_tokens - 1) if preempt and num_tokens > 1 and rng.random() < 0.5 else None
        jobs.append(Job(prompt, num_tokens, seed=index, preempt_at=preempt_at))
    return jobs


def executor_of(kind: str, runner: ModelRunner) -> Executor:
    return ThreadExecutor(runner) if kind == "thread" else InProcessExecutor(runner)


def decode_plan(slot: int, seq_len: int, *, step: int = 0, admissions: list[Admission] | None = None) -> StepPlan:
    one = np.ones(1, np.int32)
    return StepPlan(step, one * slot, 1, one, one * seq_len, np.ones(1, np.bool_), admissions or [])


def prefill_plan(slot: int, tokens: list[int], pages: list[int], params: SamplingParams = GREEDY) -> StepPlan:
    size = np.array([len(tokens)], np.int32)
    return StepPlan(
        step=0,
        slots=np.array([slot], np.int32),
        num_decodes=0,
        q_lens=size,
        seq_lens=size,
        samples=np.ones(1, np.bool_),
        admissions=[Admission(slot, 0, np.array(tokens, np.int32), len(tokens), params, 0)],
        page_slots=np.full(len(pages), slot, np.int32),
        page_index=np.arange(len(pages), dtype=np.int32),
        page_ids=np.array([pages], np.int32),
    )


@pytest.mark.parametrize("hardware", [MockHardware, MockAsyncHardware])
def test_a_decode_behind_an_unfinished_prompt_reads_the_token_it_was_admitted_with(
    hardware: type[HardwareBackend],
) -> None:
    runner = build_mock_runner(hardware=hardware(None))  # type: ignore[arg-type]
    prompt = [5, 6, 7, 8, 9]
    plan = prefill_plan(0, prompt, [1, 2])
    plan.q_lens, plan.seq_lens, plan.samples = plan.q_lens - 1, plan.seq_lens - 1, np.zeros(1, np.bool_)
    runner.launch(plan).wait()
    result = runner.launch(decode_plan(0, len(prompt), step=1)).wait()
    assert result.tokens[0].tolist() == reference_greedy(MockConfig(), prompt, 1)


@pytest.mark.parametrize("kind", ["sync", "thread"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("hardware", [MockHardware, MockAsyncHardware])
def test_every_request_gets_its_own_text(kind: str, depth: int, hardware: type[HardwareBackend]) -> None:
    runner = build_mock_runner(TWO_GROUPS, hardware=hardware(None), max_running=4, num_pages=60)  # type: ignore[arg-type]
    jobs = some_jobs(TWO_GROUPS, 20, seed=depth, preempt=True)
    executor = executor_of(kind, runner)
    try:
        Driver(executor, num_groups=2, num_slots=4, num_pages=60, depth=depth).run(jobs)
    finally:
        executor.close()
    for job in jobs:
        assert job.tokens == reference_greedy(TWO_GROUPS, job.prompt, job.num_tokens)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    page_size=st.sampled_from([1, 3, 4, 16]),
    budget=st.integers(4, 40),
    depth=st.integers(1, 3),
    windows=st.sampled_from([(None,), (7,), (None, 3), (2, None, 9)]),
)
def test_text_does_not_depend_on_pages_chunks_and_neighbours(
    seed: int, page_size: int, budget: int, depth: int, windows: tuple[int | None, ...]
) -> None:
    config = MockConfig(vocab_size=61, windows=windows, context_length=50)
    num_pages = 1 + 4 * -(-51 // page_size)
    runner = build_mock_runner(config, max_running=4, page_size=page_size, num_pages=num_pages)
    jobs = some_jobs(config, 7, seed, preempt=True)
    Driver(
        InProcessExecutor(runner), num_groups=len(windows), num_slots=4, num_pages=num_pages, page_size=page_size,
        budget=budget, depth=depth, seed=seed,
    ).run(jobs)  # fmt: skip
    for job in jobs:
        assert job.tokens == reference_greedy(config, job.prompt, job.num_tokens)


def test_seeded_samples_do_not_depend_on_neighbours_preemption_or_overlap() -> None:
    config = MockConfig(vocab_size=97, context_length=64)
    rows = [
        SamplingParams(temperature=0.9),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(top_p=0.8, presence_penalty=1.0, frequency_penalty=0.5),
        SamplingParams(temperature=0.0, repetition_penalty=1.3),
        SamplingParams(min_p=0.2, logit_bias={5: 3.0}, logprobs=3),
        GREEDY,
    ]

    def jobs(preempt: int | None) -> list[Job]:
        return [Job([3 * i, 1, 2 * i + 1], 10, params, seed=i, preempt_at=preempt) for i, params in enumerate(rows)]

    alone = []
    for job in jobs(None):
        Driver(InProcessExecutor(build_mock_runner(config)), num_pages=60).run([job])
        alone.append(job.tokens)
    assert len(set(map(tuple, alone))) == len(rows)
    for depth in (1, 2):
        together = jobs(6)
        Driver(InProcessExecutor(build_mock_runner(config)), num_pages=80, depth=depth, budget=9).run(together)
        assert [job.tokens for job in together] == alone


def test_logprobs_reach_the_result() -> None:
    config = MockConfig(vocab_size=97, context_length=64)
    job = Job([4, 5, 6], 5, SamplingParams(temperature=0.0, logprobs=2))
    other = Job([1], 9)
    Driver(InProcessExecutor(build_mock_runner(config)), num_pages=40).run([other, job])
    for index, (result, row) in enumerate(job.results):
        logits = torch.from_numpy(reference_logits(config, job.prompt + job.tokens[:index]))
        oracle = torch.log_softmax(logits, -1)
        assert result.logprobs is not None
        assert result.logprobs.chosen[row] == pytest.approx(oracle.max().item(), abs=1e-4)
        assert result.logprobs.top_ids[row].tolist() == oracle.topk(2).indices.tolist()
    assert all(result.logprobs is None or np.isnan(result.logprobs.chosen[row]) for result, row in other.results)


def test_a_first_step_that_is_a_decode_reads_the_last_admitted_token() -> None:
    """All but the last prompt token were cached: KV of slot 1 is reused by slot 2 through the same pages."""
    config = MockConfig(vocab_size=97, context_length=64)
    runner = build_mock_runner(config)
    prompt = [5, 6, 7, 8, 9]
    runner.launch(prefill_plan(1, prompt[:4], [9])).wait()
    admission = Admission(2, 1, np.array(prompt, np.int32), 5, GREEDY, 0)
    plan = decode_plan(2, 5, admissions=[admission])
    plan.page_slots, plan.page_index = np.array([2, 2], np.int32), np.array([0, 1], np.int32)
    plan.page_ids = np.array([[9, 3]], np.int32)
    assert runner.launch(plan).wait().tokens.tolist() == [reference_greedy(config, prompt, 1)]


def test_a_page_table_row_is_cleared_at_admission() -> None:
    runner = build_mock_runner(MockConfig(context_length=64))
    runner.launch(prefill_plan(0, list(range(12)), [3, 4, 5]))
    runner.launch(prefill_plan(0, [1, 2], [6]))
    assert runner._state.page_table[0, 0].tolist() == [6] + [0] * (runner.config.max_pages_per_seq - 1)


def test_an_unfinished_prefill_yields_no_rows() -> None:
    runner = build_mock_runner()
    plan = prefill_plan(0, [1, 2, 3, 4], [1])
    plan.q_lens, plan.seq_lens, plan.samples = plan.q_lens - 1, plan.seq_lens - 1, np.zeros(1, np.bool_)
    result = runner.launch(plan).wait()
    assert result.error is None
    assert result.tokens.shape == (0, 1)
    assert len(result.slots) == len(result.counts) == len(result.failed) == 0


class _Broken(DenseAttention):
    """Fails while `fault` is set; makes NaN while `poison` is."""

    fault = False
    poison = False

    def run(self, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.fault:
            raise RuntimeError("device on fire")
        out = super().run(q, *args, **kwargs)
        return out * float("nan") if self.poison else out


@pytest.mark.parametrize("kind", ["sync", "thread"])
def test_an_exception_in_the_model_fails_the_step_and_not_the_runner(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build_mock_runner(attention=_Broken)
    executor = executor_of(kind, runner)
    monkeypatch.setattr(_Broken, "fault", True)
    result = executor.launch(prefill_plan(2, [1, 2, 3], [1])).wait()
    assert result.error == "RuntimeError: device on fire"
    assert result.slots.tolist() == [2]
    assert result.failed.tolist() == [True]
    assert result.counts.tolist() == [0]
    monkeypatch.setattr(_Broken, "fault", False)
    result = executor.launch(prefill_plan(2, [1, 2, 3], [1])).wait()
    executor.close()
    assert result.error is None
    assert result.tokens.tolist() == [reference_greedy(MockConfig(), [1, 2, 3], 1)]
    assert runner.stats.failed_steps == 1


def test_a_fault_that_shows_at_the_event_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = build_mock_runner(hardware=MockAsyncHardware())

    def lost(self: MockAsyncHardware, event: object) -> None:
        raise RuntimeError("device lost")

    handle = runner.launch(prefill_plan(0, [1, 2, 3], [1]))
    monkeypatch.setattr(MockAsyncHardware, "wait_event", lost)
    assert not handle.done()
    assert handle.wait().error == "RuntimeError: device lost"
    assert handle.wait() is handle.wait()


def test_not_a_number_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = build_mock_runner(attention=_Broken)
    monkeypatch.setattr(_Broken, "poison", True)
    result = runner.launch(prefill_plan(0, [1, 2, 3], [1])).wait()
    assert result.error is None
    assert result.failed.tolist() == [True]


def test_a_plan_that_does_not_fit_the_mirror_is_an_error_of_the_step() -> None:
    runner = build_mock_runner()
    plan = prefill_plan(0, [1, 2, 3], [1])
    plan.q_lens = plan.seq_lens = np.array([4], np.int32)
    error = runner.launch(plan).wait().error
    assert error is not None
    assert "admitted with 3" in error


def test_asynchronous_steps_are_read_after_their_event() -> None:
    hardware = MockAsyncHardware()
    runner = build_mock_runner(hardware=hardware)
    first = runner.launch(prefill_plan(0, [1, 2, 3], [1]))
    second = runner.launch(decode_plan(0, 4, step=1))
    assert [event.waited for event in hardware.events] == [False, False]
    tokens = [first.wait().tokens.item()]
    assert [event.waited for event in hardware.events] == [True, False]
    assert [*tokens, second.wait().tokens.item()] == reference_greedy(MockConfig(), [1, 2, 3], 2)


class _Measuring(MockHardware):
    """Wants to see the largest step. seen: rows, tokens and the error of each plan that ran meanwhile."""

    def measure_step(self, run: Callable[[], None]) -> None:
        run()


@pytest.mark.parametrize(
    ("max_running", "chunk", "context", "rows", "tokens"), [(3, 20, 64, 3, 20), (8, 5, 64, 8, 8), (2, 100, 16, 2, 32)]
)
def test_the_largest_step_is_measured(max_running: int, chunk: int, context: int, rows: int, tokens: int) -> None:
    config = mock_runner_config(MockConfig(context_length=context), max_running=max_running, chunk_tokens=chunk)
    plan = largest_plan(config)
    assert (len(plan.slots), plan.num_tokens) == (rows, tokens)
    assert plan.q_lens.max() <= context
    runner = ModelRunner(config, _Measuring())
    runner.load()
    launched: list[StepPlan] = []
    launch = runner.launch
    runner.__dict__["launch"] = lambda plan: launched.append(plan) or launch(plan)
    runner.measure()
    assert [(len(plan.slots), plan.num_tokens) for plan in launched] == [(rows, tokens)]
    assert runner.stats.steps == 0
    error = launch(largest_plan(config)).wait().error
    assert error is not None
    assert "no KV buffers" in error, "what was made for it is gone"
    runner.allocate(30)
    assert launch(prefill_plan(0, [1, 2, 3], [1])).wait().tokens.tolist() == [
        reference_greedy(MockConfig(context_length=context), [1, 2, 3], 1)
    ]


def test_a_largest_step_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = ModelRunner(mock_runner_config(attention=_Broken, max_running=3, chunk_tokens=12), _Measuring())
    runner.load()
    monkeypatch.setattr(_Broken, "fault", True)
    with pytest.raises(EngineError, match=r"of 12 tokens in 3 sequences, failed: .*device on fire") as caught:
        runner.measure()
    assert "--chunked-prefill-size" in str(caught.value.hint)


def test_a_device_that_measures_nothing_runs_nothing() -> None:
    runner = ModelRunner(mock_runner_config(), MockHardware())
    runner.load()
    runner.__dict__["launch"] = None  # calling it would fail
    runner.measure()


def test_times_of_a_step_are_told_and_summed_up() -> None:
    runner = build_mock_runner()
    result = runner.launch(prefill_plan(0, [1, 2, 3], [1])).wait()
    times = result.times
    assert times.build_s > 0
    assert times.launch_s > 0
    assert times.output_s > 0
    assert times.gpu_s == 0, "this device times nothing"
    assert (runner.stats.build_s, runner.stats.launch_s) == (times.build_s, times.launch_s)


def test_a_device_that_times_its_steps() -> None:
    class Timing(MockAsyncHardware):
        def times_steps(self) -> bool:
            return True

        def elapsed_s(self, first: Any, second: Any) -> float:
            assert first.number < second.number
            assert second.waited
            return 0.25

    runner = build_mock_runner(hardware=Timing())
    result = runner.launch(prefill_plan(0, [1, 2, 3], [1])).wait()
    assert result.times.gpu_s == runner.stats.gpu_s == 0.25


def test_warm_up_leaves_nothing_behind() -> None:
    runner = build_mock_runner()
    runner.warm_up()
    assert runner.stats.steps == 0
    jobs = some_jobs(MockConfig(), 5, seed=1)
    Driver(InProcessExecutor(runner), num_pages=100).run(jobs)
    assert [job.tokens for job in jobs] == [reference_greedy(MockConfig(), job.prompt, job.num_tokens) for job in jobs]
    assert runner.stats.steps > 0
    assert runner.stats.device_time_s > 0


def test_warm_up_reports_a_broken_model(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = build_mock_runner(attention=_Broken)
    monkeypatch.setattr(_Broken, "fault", True)
    with pytest.raises(EngineError, match="device on fire"):
        runner.warm_up()


def test_kv_bytes_per_page_are_those_of_the_buffers() -> None:
    runner = build_mock_runner(TWO_GROUPS, num_pages=10)
    allocated = sum(buffer.nbytes for buffers in runner._kv for buffer in buffers)
    assert runner.kv_bytes_per_page() * 10 == allocated


def test_steps_before_load_or_allocate_say_so() -> None:
    runner = ModelRunner(mock_runner_config(), MockHardware())
    assert "allocate()" in (runner.launch(prefill_plan(0, [1], [1])).wait().error or "")
    with pytest.raises(EngineError, match="load"):
        _ = runner.model


def test_configuration_names_the_wrong_field() -> None:
    config = mock_runner_config()
    for changes, name in (
        ({"page_size": 0}, "page_size"),
        ({"attention": ()}, "attention"),
        ({"load_format": "safetensors"}, "checkpoint"),
    ):
        fields = {field: getattr(config, field) for field in config.__slots__} | changes
        with pytest.raises(ConfigError) as caught:
            type(config)(**fields)
        assert caught.value.field == name
