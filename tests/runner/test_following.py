"""A following rank: told each plan and the tokens that were drawn, it holds the same mirror as the rank that draws."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_driver import Driver, Job

from core.interfaces.hardware import HardwareBackend
from core.interfaces.params import PoolingParams, ProcessorParams, SamplingParams
from core.interfaces.step import Admission, StepPlan, TokenMasks
from core.runner.executor import StepHandle
from core.runner.following import FollowingRunner
from core.runner.plan_wire import PlanMessage
from core.runner.runner import ModelRunner
from core.testing.capturable_attention import CapturableAttention
from core.testing.mock_graphs import MockGraphHardware
from core.testing.mock_hardware import MockAsyncHardware, MockHardware
from core.testing.mock_model import MockConfig, reference_greedy
from core.testing.mock_runner import mock_runner_config

SLOTS = 6
CONFIG = MockConfig(vocab_size=61, windows=(None, 5), context_length=40)
DRAWN = SamplingParams(temperature=0.9, top_k=20, presence_penalty=0.4, logprobs=2)


class Pair:
    """Two ranks in one process, with the whole model each: as an executor, the plan goes over the wire to the second.

    sent: what the first broadcast and the second has not taken; it never waits for what was not sent.
    """

    def __init__(self, hardware: type[HardwareBackend], num_pages: int) -> None:
        self.sent: deque[torch.Tensor] = deque()
        config = mock_runner_config(CONFIG, max_running=SLOTS, chunk_tokens=40, attention=CapturableAttention)

        def take(x: torch.Tensor) -> torch.Tensor:
            return x.copy_(self.sent.popleft())

        self.first = ModelRunner(replace(config, broadcast=self._send), hardware(None))  # type: ignore[arg-type]
        self.second = FollowingRunner(replace(config, broadcast=take), hardware(None))  # type: ignore[arg-type]
        for runner in (self.first, self.second):
            runner.load()
        for runner in (self.first, self.second):
            runner.measure()
        for runner in (self.first, self.second):
            runner.allocate(num_pages)
            runner.warm_up()
        assert not self.sent, "both warm up with the same steps"

    def _send(self, x: torch.Tensor) -> torch.Tensor:
        self.sent.append(x.clone())
        return x

    def launch(self, plan: StepPlan, masks: TokenMasks | None = None) -> StepHandle:
        wire = msgspec.msgpack.encode(PlanMessage.of(plan))
        handle = self.first.launch(plan)
        if plan.masked:
            handle.sample(masks)
        result = self.second.launch(msgspec.msgpack.decode(wire, type=PlanMessage).plan()).wait()
        assert result.error is None, result.error
        assert not self.sent, "every token that was drawn is taken in the same step"
        self.check_same()
        return handle

    def check_same(self) -> None:
        first, second = self.first, self.second
        assert torch.equal(first._last_tokens[:SLOTS], second._last_tokens[:SLOTS])
        assert np.array_equal(first._state.page_table, second._state.page_table)
        for mine, other in zip(first._kv, second._kv, strict=True):
            for a, b in zip(mine, other, strict=True):
                assert torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)

    def close(self) -> None: ...


def job(rng: random.Random, index: int) -> Job:
    prompt = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randint(1, 12))]
    made = Job(prompt, rng.randint(2, 14), SamplingParams(temperature=0.0) if index % 3 else DRAWN, seed=index)
    made.preempt_at = rng.choice([None, 1]) if index % 4 == 0 else None
    return made


@pytest.mark.parametrize("hardware", [MockHardware, MockAsyncHardware, MockGraphHardware])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_plans_leave_both_with_the_same_mirror(hardware: Any, seed: int) -> None:
    num_pages = 1 + SLOTS * 11
    pair, rng = Pair(hardware, num_pages), random.Random(seed)
    jobs = [job(rng, index) for index in range(8)]
    Driver(pair, num_groups=2, num_slots=SLOTS, num_pages=num_pages, budget=40, seed=seed).run(jobs)
    for one in jobs:
        if one.params is not DRAWN:
            assert one.tokens == reference_greedy(CONFIG, one.prompt, one.num_tokens)
    if hardware is MockGraphHardware:
        assert pair.first.recorded_sizes == pair.second.recorded_sizes
        assert pair.first.recorded_sizes[:3] == (1, 2, 4)
        assert pair.first.stats.replayed_steps == pair.second.stats.replayed_steps > 0


def one_row(step: int, *admissions: Admission, decode: bool = False, masked: bool = False, length: int = 4) -> StepPlan:
    return StepPlan(
        step, np.zeros(1, np.int32), int(decode), np.array([1 if decode else length], np.int32),
        np.array([length], np.int32), np.ones(1, np.bool_), list(admissions), masked=masked,
        page_slots=np.zeros(1, np.int32), page_index=np.array([(length - 1) // 4], np.int32),
        page_ids=np.full((2, 1), 1 + (length - 1) // 4, np.int32),
    )  # fmt: skip


def test_masks_processors_and_vectors_stay_with_the_first() -> None:
    pair = Pair(MockGraphHardware, 8)
    tokens = np.array([5, 6, 7, 8], np.int32)
    asked = SamplingParams(temperature=0.7, processors=(ProcessorParams(name="none"),), stop=("x",), prompt_logprobs=1)
    words = np.zeros((1, 2), np.uint32)
    words[0, 1] = 1 << 3  # token 35 alone
    masks = TokenMasks(np.zeros(1, np.int32), words)
    pair.launch(one_row(0, Admission(0, 7, tokens, 4, SamplingParams(), 3), masked=True), masks)
    assert int(pair.second._last_tokens[0]) == 35
    pair.launch(one_row(1, decode=True, masked=True, length=5), masks)
    assert int(pair.second._last_tokens[0]) == 35
    pair.launch(one_row(2, Admission(0, 8, tokens, 4, asked, 9)))
    assert not pair.second._state.processed._texts
    pooled = Admission(0, 9, tokens, 4, SamplingParams(), 0, pooling=PoolingParams(pooling="mean"))
    extras = pair.launch(one_row(3, pooled)).wait().extras
    assert extras[0].pooled is not None


def test_what_goes_over_the_wire() -> None:
    asked = SamplingParams(temperature=0.5, seed=4, stop=("end",), prompt_logprobs=3, hidden_states="all", logprobs=2)
    tokens = np.arange(9, dtype=np.int32)[::2]
    plan = one_row(12, Admission(3, 5, tokens, 2, asked, 77), masked=True)
    plan.page_ids = np.arange(8, dtype=np.int32).reshape(4, 2).T[:, :1]  # no order of memory is taken for granted
    made = msgspec.msgpack.decode(msgspec.msgpack.encode(PlanMessage.of(plan)), type=PlanMessage).plan()
    for name in ("slots", "q_lens", "seq_lens", "samples", "page_slots", "page_index", "page_ids"):
        assert np.array_equal(getattr(made, name), getattr(plan, name)), name
        assert getattr(made, name).dtype == getattr(plan, name).dtype, name
    assert (made.step, made.num_decodes, made.masked) == (12, 0, False)
    (admission,) = made.admissions
    assert (admission.slot, admission.num_prompt, admission.token_ids.tolist()) == (3, 2, [0, 2, 4, 6, 8])
    assert admission.sampling == SamplingParams(temperature=0.0, prompt_logprobs=3, hidden_states="all")
    large = np.full(2, 7, np.int64)
    assert PlanMessage.of(replace(plan, slots=large)).plan().slots.tolist() == [7, 7], "of any integer type"  # type: ignore[arg-type]


def test_a_step_that_fails_is_a_result_with_its_reason() -> None:
    pair = Pair(MockHardware, 8)
    assert "prefills slot 0" in (pair.second.launch(one_row(0)).wait().error or "")
    assert pair.second.stats.failed_steps == 1
    pair.second.release()
    assert "no KV buffers" in (pair.second.launch(one_row(1)).wait().error or "")
