"""The loop over the real scheduler and memory, with steps that fail and requests that leave at random: nothing leaks,
and whoever was not in a failed step gets the tokens of an undisturbed run."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pytest
from engine_fakes import hello
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.sections import SchedulerSettings
from core.engine.build import to_request
from core.engine.engine import Engine
from core.engine.messages import FINISH_REASONS, AddRequest
from core.interfaces.context import PluginContext
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheGeometry
from core.interfaces.step import StepPlan, StepResult
from core.memory.manager import MemoryManager
from core.memory.radix import RadixCache
from core.scheduler.facts import ModelFacts
from core.scheduler.scheduler import Scheduler

EOS = 7


def token_at(seed: int, position: int) -> int:
    return (seed * 31 + position * 13) % 97


class Executor:
    """fails: step -> "launch", "wait" or "result" (a StepResult with an error). Two failures never follow each other,
    so that the engine does not give up."""

    def __init__(self, fails: dict[int, str]) -> None:
        self.fails = fails
        self.seeds: dict[int, int] = {}
        self.hit: set[int] = set()
        self.ids: dict[int, int] = {}
        self.computed: dict[int, int] = {}
        self.gaps: list[tuple[int, int]] = []

    def launch(self, plan: StepPlan) -> Handle:
        for admission in plan.admissions:
            self.seeds[admission.slot] = admission.seed
            self.ids[admission.slot] = admission.request_id
        how = self.fails.get(plan.step) if plan.step - 1 not in self.fails else None
        if how is not None:
            self.hit |= {self.ids[slot] for slot in plan.slots.tolist()}
        admitted = {admission.slot for admission in plan.admissions}
        starts = plan.seq_lens - plan.q_lens
        for slot, start, end in zip(plan.slots.tolist(), starts.tolist(), plan.seq_lens.tolist(), strict=True):
            if slot not in admitted and self.computed[slot] != start:
                self.gaps.append((plan.step, slot))
            if how is None or slot in admitted:
                self.computed[slot] = end if how is None else start
        if how == "launch":
            raise RuntimeError("launch")
        slots, lens = plan.slots[plan.samples], plan.seq_lens[plan.samples]
        count = len(slots)
        tokens = [
            token_at(self.seeds[slot], position) for slot, position in zip(slots.tolist(), lens.tolist(), strict=True)
        ]
        result = StepResult(
            plan.step, slots, np.array(tokens, np.int32).reshape(count, 1), np.ones(count, np.int32),
            np.full(count, how == "result"), error="device error" if how == "result" else None,
        )  # fmt: skip
        return Handle(result, how == "wait")

    def close(self) -> None:
        return None


@dataclass
class Handle:
    result: StepResult
    raises: bool

    def sample(self, masks: object) -> None:
        raise AssertionError("no step here is masked")

    def wait(self) -> StepResult:
        if self.raises:
            raise RuntimeError("wait")
        return self.result


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("core.engine").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("core.engine").setLevel(logging.NOTSET)


@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40), st.integers(1, 15)), min_size=1, max_size=10),
    fails=st.dictionaries(st.integers(0, 40), st.sampled_from(["launch", "wait", "result"]), max_size=6),
    cancels=st.dictionaries(st.integers(0, 30), st.integers(0, 9), max_size=4),
    overlap=st.booleans(),
    num_pages=st.integers(14, 40),
)
def test_failing_steps_leak_nothing(requests, fails, cancels, overlap: bool, num_pages: int) -> None:
    facts = ModelFacts(context_length=64, num_pages=num_pages, page_size=4, chunk_tokens=8, max_running=3)
    memory = MemoryManager(
        RadixCache(CacheGeometry(4), PluginContext()),
        num_pages=num_pages, page_size=4, num_slots=3, max_pages=facts.max_pages,
    )  # fmt: skip
    executor = Executor(fails)
    engine = Engine(
        Scheduler(SchedulerSettings(), facts, memory), executor, hello(3),
        lambda message: to_request(message, (EOS,), 100), max_slots=3, overlap=overlap,
    )  # fmt: skip
    for i, (length, seed, max_tokens) in enumerate(requests):
        prompt = np.full(length, i % 3 + 10, np.int32)  # some share a prefix
        engine.submit(AddRequest(i, prompt.tobytes(), SamplingParams(max_tokens=max_tokens), seed))
    tokens: dict[int, list[int]] = {i: [] for i in range(len(requests))}
    finish: dict[int, str] = {}
    for turn in range(2000):
        if not engine.has_work:
            break
        if turn in cancels:
            engine.cancel(cancels[turn])
        for outputs in engine.step() or ():
            ids = np.frombuffer(outputs.ids, np.int64).tolist()
            news = np.frombuffer(outputs.tokens, np.int32).tolist()
            for request_id, token, reason in zip(ids, news, np.frombuffer(outputs.finish, np.uint8), strict=True):
                assert request_id not in finish
                if token >= 0:
                    tokens[request_id].append(token)
                if reason:
                    finish[request_id] = FINISH_REASONS[reason]
    assert finish.keys() == tokens.keys()
    # With overlap the step after a failed one is under way before the failure is known.
    assert overlap or not executor.gaps, "a step went on from KV that a failed step did not write"
    memory.check_all()
    assert memory.idle
    stats = memory.stats()
    assert (stats.leased, stats.quarantined) == (0, 0)
    assert not any((engine._live, engine._arrival_s))
    assert engine._outputs.empty
    for i, (length, seed, max_tokens) in enumerate(requests):
        want = [token_at(seed, length + k) for k in range(max_tokens)]
        want = want[: want.index(EOS) + 1] if EOS in want else want
        assert tokens[i] == want[: len(tokens[i])]
        if finish[i] in ("stop", "length"):
            assert tokens[i] == want
        elif finish[i] == "error":
            assert i in executor.hit
        else:
            assert finish[i] == "abort"
            assert i in cancels.values()
