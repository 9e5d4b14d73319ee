"""What sampling takes from the host: one copy for each step on a device with memory of its own, and the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import CPU, admission, draw, make_sampler

from core.interfaces.hardware import EngineFacts, HardwareCapabilities
from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.step import StepPlan, StepResult, TokenMasks
from core.ops.reference import REFERENCES
from core.runner import graphs, pieces
from core.runner.runner import ModelRunner
from core.runner.sampler import Sampler
from core.runner.sampling_inputs import room_for
from core.runner.transfer import Transfer
from core.testing.capturable_attention import CapturableAttention
from core.testing.contracts.hardware_steps import decode_plans
from core.testing.contracts.host_reads import NoHostReads
from core.testing.mock_graphs import MockGraphs
from core.testing.mock_hardware import MockAsyncHardware, MockHardware
from core.testing.mock_model import MockConfig
from core.testing.mock_runner import build_mock_runner

CONFIG = MockConfig(vocab_size=97, windows=(None, 5), context_length=64)
GREEDY = SamplingParams(temperature=0.0)
ENDS = tuple(range(0, 97, 3))
KINDS = {
    "greedy": GREEDY,
    "drawn": SamplingParams(temperature=0.9),
    "filtered": SamplingParams(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01),
    "nucleus": SamplingParams(top_p=0.6),
    "penalties": SamplingParams(temperature=0.7, presence_penalty=0.4, frequency_penalty=0.1, repetition_penalty=1.2),
    "greedy penalties": SamplingParams(temperature=0.0, repetition_penalty=1.5),
    "bias": SamplingParams(temperature=0.8, logit_bias={5: 2.5, 60: -3.0}),
    "min_tokens": SamplingParams(min_tokens=4, stop_token_ids=ENDS),
    "logprobs": SamplingParams(temperature=0.5, top_k=30, logprobs=2),
}


class OwnMemory(MockAsyncHardware):
    """Memory of its own; sizes, token_sizes: of the steps that it records."""

    capabilities: ClassVar[HardwareCapabilities] = replace(MockAsyncHardware.capabilities, graphs=True)

    def __init__(self, sizes: tuple[int, ...] = (), token_sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._sizes = sizes, token_sizes

    def graphs(self, facts: EngineFacts) -> MockGraphs | None:
        return MockGraphs(*self._sizes) if any(self._sizes) else None


WAYS: dict[str, Callable[[], MockHardware]] = {
    "host memory": MockHardware,
    "launched": OwnMemory,
    "recorded": lambda: OwnMemory((4, 12)),
    "pieces": lambda: OwnMemory((), (16, 64)),
}


def make(way: str) -> tuple[ModelRunner, Any]:
    hardware = WAYS[way]()
    runner = build_mock_runner(CONFIG, hardware=hardware, max_running=12, attention=CapturableAttention)
    runner.warm_up()
    return runner, hardware


def plans_of(runner: ModelRunner, rows: list[tuple[int, SamplingParams]], num_steps: int) -> list[StepPlan]:
    """Row i is in slot i; its seed and its prompt follow from the number beside its parameters."""
    plans = decode_plans(runner, [[number + 2, 3, 7 * number % 97][: 1 + number % 3] for number, _ in rows], num_steps)
    plans[0].admissions = [
        replace(asked, sampling=params, seed=number)
        for asked, (number, params) in zip(plans[0].admissions, rows, strict=True)
    ]
    return plans


def results_of(runner: ModelRunner, rows: list[tuple[int, SamplingParams]], num_steps: int = 7) -> list[StepResult]:
    results = []
    for plan in plans_of(runner, rows, num_steps):
        results.append(runner.launch(plan).wait())
        assert results[-1].error is None
    return results


@pytest.mark.parametrize("way", ["launched", "recorded", "pieces"])
@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_a_step_is_one_copy_each_way(way: str, kind: str) -> None:
    runner, hardware = make(way)
    params = [*KINDS.values()] if kind == "all" else [KINDS[kind]] * 3
    plans = plans_of(runner, [*enumerate(params)], 8)
    runner.launch(plans[0]).wait()
    for plan in plans[1:]:
        before = hardware.num_uploads, hardware.num_downloads
        with NoHostReads():
            handle = runner.launch(plan)
        assert (hardware.num_uploads, hardware.num_downloads) == (before[0] + 1, before[1] + 1)
        assert handle.wait().error is None
    assert runner.stats.replayed_steps == (7 if way == "recorded" else 0)
    assert runner.stats.pieced_steps == (8 if way == "pieces" else 0)


@pytest.mark.parametrize("way", ["launched", "pieces"])
def test_a_prefill_is_one_copy(way: str) -> None:
    """Of rows whose counts need none of their own; one chunk is not the last."""
    runner, hardware = make(way)
    params = [KINDS[kind] for kind in ("filtered", "greedy", "drawn", "bias", "min_tokens", "logprobs")]
    plan = plans_of(runner, [*enumerate(params)], 1)[0]
    plan.q_lens = plan.seq_lens = np.maximum(plan.seq_lens - (plan.slots == 5), 1)
    plan.samples = plan.slots != 5
    before = hardware.num_uploads
    assert runner.launch(plan).wait().error is None
    assert hardware.num_uploads - before == 1 + 1, "and the last token of the prompt that goes on"


@pytest.mark.parametrize("way", WAYS)
def test_a_row_in_a_batch_of_all_kinds_gets_what_it_gets_alone(way: str) -> None:
    """Against a lone row on a device with host memory."""
    rows = [*enumerate(KINDS.values())]
    together = results_of(make(way)[0], rows)
    for at, row in enumerate(rows):
        alone = results_of(make("host memory")[0], [row])
        assert [result.tokens[at].tolist() for result in together] == [result.tokens[0].tolist() for result in alone]
        if row[1].logprobs is not None:
            for mine, other in zip(together, alone, strict=True):
                assert mine.logprobs is not None
                assert other.logprobs is not None
                np.testing.assert_allclose(mine.logprobs.top[at], other.logprobs.top[0], atol=1e-4)
                assert mine.logprobs.top_ids[at].tolist() == other.logprobs.top_ids[0].tolist()
    assert len({tuple(result.tokens[:, 0]) for result in together}) == 7


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([*KINDS]), min_size=1, max_size=9), st.sampled_from([*WAYS]))
def test_tokens_do_not_depend_on_how_inputs_travel(kinds: list[str], way: str) -> None:
    rows = [(number, KINDS[kind]) for number, kind in enumerate(kinds)]
    wanted = results_of(make("host memory")[0], rows, 4)
    for want, got in zip(wanted, results_of(make(way)[0], rows, 4), strict=True):
        assert want.tokens.tolist() == got.tokens.tolist()


@pytest.mark.parametrize("way", ["recorded", "pieces"])
def test_what_has_no_room_travels_on_its_own(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_CHANGES", 0)
    monkeypatch.setattr(pieces, "_MOST_TABLE_BYTES", 4096)
    many = SamplingParams(temperature=0.9, logit_bias={token: 0.1 * (token % 7) for token in range(97)}, top_p=0.9)
    rows = [(number, many) for number in range(9)]
    wanted = results_of(make("host memory")[0], rows, 4)
    runner, hardware = make(way)
    plans = plans_of(runner, rows, 4)
    for want, plan in zip(wanted, plans, strict=True):
        before = hardware.num_uploads
        assert runner.launch(plan).wait().tokens.tolist() == want.tokens.tolist()
        no_buffer = way == "recorded" and plan.step == 0  # the prompts are launched, in new memory
        assert hardware.num_uploads == before + (1 if no_buffer else 2)
    assert runner.stats.replayed_steps + runner.stats.pieced_steps >= 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["drawn", "min_tokens"])
def test_a_masked_step_finds_its_inputs_when_it_is_sampled(way: str, kind: str) -> None:
    """One copy when it is computed, one for the masks; where a mask leaves nothing but ends, min_tokens yields."""
    rows = [(0, KINDS[kind]), (1, KINDS["filtered"]), (2, KINDS[kind])]
    runner, hardware = make(way)
    words = np.zeros((1, 4), np.uint32)
    words[0, 0] = 1 << 9  # an end
    plans = plans_of(runner, rows, 4)
    free = results_of(make("host memory")[0], rows, 4)
    for plan, want in zip(plans, free, strict=True):
        plan.masked = True
        handle = runner.launch(plan)
        before = getattr(hardware, "num_uploads", 0)
        masks = TokenMasks(np.zeros(1, np.int32), words) if plan.step == 3 else None
        handle.sample(masks)
        result = handle.wait()
        assert result.error is None
        assert result.tokens[1:].tolist() == want.tokens[1:].tolist()
        assert result.tokens[0, 0] == (9 if masks is not None else want.tokens[0, 0])
        if hasattr(hardware, "num_uploads"):
            # Rows of min_tokens without the one whose mask allows an end alone are known only now.
            expected = (2 if kind == "min_tokens" else 1) if masks is not None else 0
            assert hardware.num_uploads - before == expected


@pytest.mark.parametrize("way", ["launched", "pieces"])
def test_pooled_rows_among_drawn_ones_cost_no_copy_of_their_own(way: str) -> None:
    kinds = ["drawn", "greedy", "filtered", "logprobs"]
    rows = [(number, KINDS[kind]) for number, kind in enumerate(kinds)]
    runner, hardware = make(way)
    wanted = results_of(make("host memory")[0], rows, 1)[0]
    plan = plans_of(runner, rows, 1)[0]
    plan.admissions[1] = replace(plan.admissions[1], pooling=PoolingParams())
    before = hardware.num_uploads
    result = runner.launch(plan).wait()
    assert result.error is None
    assert hardware.num_uploads - before == 2, "the step's, and where the pooled vector is"
    assert result.tokens[[0, 2, 3]].tolist() == wanted.tokens[[0, 2, 3]].tolist()
    assert result.tokens[1, 0] == 0
    assert result.extras[1].pooled is not None
    assert result.logprobs is not None
    assert np.isfinite(result.logprobs.chosen).tolist() == [False, False, False, True]


def test_rows_that_need_nothing_have_no_inputs() -> None:
    sampler = make_sampler([GREEDY, SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=(1,))], 20)
    slots = np.arange(2, dtype=np.int32)
    assert sampler.inputs(slots[:1], slots[:1]) is None
    assert sampler.inputs(slots[:0], slots[:0]) is None
    held = sampler.inputs(slots, np.full(2, 3, np.int32))
    assert held is not None
    assert held.edit
    assert sampler.inputs(slots, np.full(2, 4, np.int32)) is None, "three were generated after a prompt of one"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([kind for kind in KINDS if kind not in ("bias", "min_tokens")]), min_size=1))
def test_there_is_room_for_every_mix(kinds: list[str]) -> None:
    sampler = Sampler(len(kinds), 50, Transfer(CPU, direct=False))
    for slot, kind in enumerate(kinds):
        sampler.admit(admission(slot, msgspec.structs.replace(KINDS[kind], logprobs=1 if slot % 2 else None)))
    slots = np.arange(len(kinds), dtype=np.int32)
    inputs = sampler.inputs(slots, slots)
    assert inputs is None or inputs.num_bytes <= room_for(len(kinds)) - 2048


def test_rows_drawn_alike_are_not_copied_again() -> None:
    """What the operation gives is the result itself."""
    given: list[torch.Tensor] = []

    def race(*args: Any) -> torch.Tensor:
        given.append(REFERENCES["gumbel_argmax"](*args))
        return given[-1]

    for params in (KINDS["drawn"], KINDS["filtered"]):
        sampler = Sampler(3, 50, Transfer(CPU, direct=False), {**REFERENCES, "gumbel_argmax": race})
        for slot in range(3):
            sampler.admit(admission(slot, params, seed=slot))
        assert draw(sampler, torch.randn(3, 50), range(3), [1] * 3).tokens is given[-1]
    assert len(given) == 2


def test_a_batch_is_drawn_in_pieces_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many rows as the cache holds: the last piece may be smaller."""
    rows = [params for _ in range(3) for params in KINDS.values()]
    logits = torch.randn(len(rows), 97)
    wanted = draw(make_sampler(rows, 97), logits, range(len(rows)), [2] * len(rows)).tokens.tolist()
    for chunk in (1, 2, 5):
        sampler = make_sampler(rows, 97)
        sampler._chunk_rows = chunk
        inputs = sampler.inputs(np.arange(len(rows), dtype=np.int32), np.full(len(rows), 2, np.int32))
        assert inputs is not None
        assert max(len(one.rows) for one in inputs.draws) == chunk
        assert sampler.sample(logits, inputs).tokens.tolist() == wanted
