"""What an engine tells: every request admitted at most once and finished exactly once, with true counts; steps in
batches; one last word. Over the real scheduler, with requests that leave at random and steps that fail."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_fakes import FakeExecutor, FakeScheduler, hello, make_engine
from hook_plugins import Recorder, manager
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_faults import EOS, Executor

from core.config.sections import SchedulerSettings
from core.engine.build import to_request
from core.engine.client import EngineRequest
from core.engine.engine import Engine, EngineFailed
from core.engine.inline_client import InlineClient
from core.engine.listeners import EngineListeners
from core.engine.messages import FINISH_REASONS, AddRequest
from core.engine.offline import OfflineEngine
from core.hooks import HookManager
from core.interfaces.context import PluginContext
from core.interfaces.errors import EngineDead, RequestError
from core.interfaces.hooks import HookPlugin, hookimpl
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheGeometry
from core.memory.manager import MemoryManager
from core.memory.radix import RadixCache
from core.scheduler.facts import ModelFacts
from core.scheduler.scheduler import Scheduler


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("core.engine").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("core.engine").setLevel(logging.NOTSET)


def real_engine(listeners: Any, fails: dict[int, str], overlap: bool, num_pages: int = 30) -> Engine:
    facts = ModelFacts(context_length=64, num_pages=num_pages, page_size=4, chunk_tokens=8, max_running=3)
    memory = MemoryManager(
        RadixCache(CacheGeometry(4), PluginContext()),
        num_pages=num_pages, page_size=4, num_slots=3, max_pages=facts.max_pages,
    )  # fmt: skip
    return Engine(
        Scheduler(SchedulerSettings(), facts, memory), Executor(fails), hello(3),
        lambda message: to_request(message, (EOS,), 100), max_slots=3, overlap=overlap, listeners=listeners,
    )  # fmt: skip


def add(request_id: int, length: int, seed: int = 0, priority: int = 0, **sampling: Any) -> AddRequest:
    prompt = np.full(length, request_id % 3 + 10, np.int32)  # some share a prefix
    return AddRequest(request_id, prompt.tobytes(), SamplingParams(**sampling), seed, priority=priority)


@settings(max_examples=120)
@given(
    requests=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(1, 15)), min_size=1, max_size=10),
    fails=st.dictionaries(st.integers(0, 40), st.sampled_from(["launch", "wait", "result"]), max_size=6),
    cancels=st.dictionaries(st.integers(0, 30), st.integers(0, 9), max_size=4),
    overlap=st.booleans(),
    num_pages=st.integers(14, 40),
    turns=st.integers(1, 200),
)
def test_every_request_finishes_once_with_its_counts(
    requests: list[tuple[int, int, int]], fails: dict[int, str], cancels: dict[int, int], overlap: bool,
    num_pages: int, turns: int,
) -> None:  # fmt: skip
    heard = Recorder()
    engine = real_engine(EngineListeners.of(manager(heard), 3), fails, overlap, num_pages)
    for i, (length, seed, max_tokens) in enumerate(requests):
        engine.submit(add(i, length, seed, priority=i % 2, max_tokens=max_tokens))
    num_tokens: Counter[int] = Counter()
    seen: dict[int, str] = {}
    for turn in range(turns):
        if not engine.has_work:
            break
        if turn in cancels:
            engine.cancel(cancels[turn])
        for outputs in engine.step() or ():
            ids = np.frombuffer(outputs.ids, np.int64).tolist()
            tokens = np.frombuffer(outputs.tokens, np.int32).tolist()
            for request_id, token, reason in zip(ids, tokens, np.frombuffer(outputs.finish, np.uint8), strict=True):
                num_tokens[request_id] += token >= 0
                if reason:
                    seen[request_id] = FINISH_REASONS[reason]
    engine.close()
    engine.close()
    finished = {told.id: told for told in heard.of("finished")}
    assert len(heard.of("finished")) == len(requests) == len(finished)
    admitted = Counter(told.id for told in heard.of("admitted"))
    assert set(admitted.values()) <= {1}
    for told in heard.of("admitted"):
        length = requests[told.id][0]
        assert (told.num_prompt_tokens, told.priority) == (length, told.id % 2)
        assert 0 <= told.cached_tokens < length
        assert told.queue_s >= 0
    for request_id, told in finished.items():
        assert told.finish_reason == seen.get(request_id, "abort"), "whoever still ran at the end is aborted"
        assert told.num_prompt_tokens == requests[request_id][0]
        assert told.num_output_tokens == num_tokens[request_id]
        assert (told.error is not None) == (told.finish_reason == "error")
        if num_tokens[request_id]:
            assert request_id in admitted
    places = {(name, value.id): at for at, (name, value) in enumerate(heard.heard) if name in ("admitted", "finished")}
    assert all(places["admitted", i] < places["finished", i] for i in admitted)
    steps = [step for batch in heard.of("steps") for step in batch]
    assert len(steps) == engine.steps
    assert len({step.step for step in steps}) == len(steps)
    assert heard.order.count("stopping") == 1
    assert heard.order[-1] == "stopping"


def test_each_way_out() -> None:
    heard = Recorder()
    engine = real_engine(EngineListeners.of(manager(heard), 3), {}, overlap=False)
    engine.submit(add(0, 5, max_tokens=2))  # length
    engine.submit(add(1, 0, max_tokens=2))  # refused: no tokens
    engine.submit(add(2, 5, max_tokens=9))  # aborted while it runs
    engine.submit(add(3, 5, seed=0, max_tokens=20))  # stop: position 8 gives EOS
    engine.submit(add(4, 5, max_tokens=9))  # aborted before admission: three run
    engine.submit(AddRequest(5, np.array([5000], np.int32).tobytes(), SamplingParams(), 0))  # refused: no such token
    engine.cancel(4)
    engine.step()
    engine.cancel(2)
    while engine.has_work:
        engine.step()
    told = {told.id: told for told in heard.of("finished")}
    assert {i: told[i].finish_reason for i in sorted(told)} == {
        0: "length", 1: "error", 2: "abort", 3: "stop", 4: "abort", 5: "error",
    }  # fmt: skip
    assert "0 tokens" in told[1].error
    assert "5000" in told[5].error
    assert {told.id for told in heard.of("admitted")} == {0, 2, 3}
    assert told[0].num_output_tokens == 2
    assert not heard.of("stopping")


def test_an_engine_that_dies_ends_its_requests_with_the_reason() -> None:
    heard = Recorder()
    engine = real_engine(EngineListeners.of(manager(heard), 3), {}, overlap=False)
    engine.submit(add(0, 5, max_tokens=9))
    engine.step()
    engine.submit(add(1, 5, max_tokens=9))

    def broken() -> None:
        raise ValueError("half updated")

    engine._scheduler.schedule = broken  # type: ignore[assignment, method-assign]
    engine.submit(add(2, 5, max_tokens=9))
    with pytest.raises(EngineFailed):
        engine.step()
    engine.close()
    assert {told.id: told.finish_reason for told in heard.of("finished")} == {0: "error", 1: "error", 2: "error"}
    assert all("half updated" in told.error for told in heard.of("finished"))
    assert len(heard.of("stopping")) == 1
    assert "half updated" in heard.of("stopping")[0]
    assert sum(map(len, heard.of("steps"))) == 1, "steps are told before the end"


def test_steps_come_about_once_a_second() -> None:
    heard, now = Recorder(), [0.0]
    engine = Engine(
        FakeScheduler(), FakeExecutor(), hello(), lambda message: message, max_slots=8,
        listeners=EngineListeners.of(manager(heard), 8), clock=lambda: now[0],
    )  # fmt: skip
    engine.submit(add(1, 5, max_tokens=35, ignore_eos=True, seed=1))
    while engine.has_work:
        engine.step()
        now[0] += 0.125
    batches = [len(batch) for batch in heard.of("steps")]
    assert sum(batches) < engine.steps
    assert set(batches[1:]) == {8}, "the first is told at once, then eight steps of an eighth of a second"
    engine.tell_steps(at_once=True)
    assert sum(map(len, heard.of("steps"))) == engine.steps
    first = heard.of("steps")[0][0]
    assert (first.num_seqs, first.num_decodes, first.num_tokens, first.failed) == (1, 0, 5, False)
    engine.tell_steps(at_once=True)
    assert sum(map(len, heard.of("steps"))) == engine.steps, "an empty batch is not told"


@pytest.mark.parametrize(
    "hooks",
    [None, HookManager(), manager(type("Silent", (HookPlugin,), {})(None))],
    ids=["none", "empty", "others"],
)
def test_nothing_is_made_where_nobody_listens(hooks: HookManager | None) -> None:
    assert EngineListeners.of(hooks, 8) is None


def test_only_what_is_listened_to_is_made() -> None:
    class Steps(HookPlugin):
        @hookimpl
        def core_steps_done(self, steps: Any) -> None:
            heard.extend(steps)

    heard: list[Any] = []
    listeners = EngineListeners.of(manager(Steps(None)), 3)  # type: ignore[arg-type]
    engine = real_engine(listeners, {}, overlap=False)
    engine.submit(add(0, 5, max_tokens=3))
    while engine.has_work:
        engine.step()
        assert not listeners._requests  # type: ignore[union-attr]
    engine.close()
    assert len(heard) == engine.steps


def test_a_listener_that_raises_does_not_reach_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    class Raises(HookPlugin):
        @hookimpl
        def core_request_finished(self, request: Any) -> None:
            raise SystemExit("no")

    heard = Recorder()
    engine = real_engine(EngineListeners.of(manager(Raises(None), heard), 3), {}, overlap=False)  # type: ignore[arg-type]
    for i in range(5):
        engine.submit(add(i, 5, max_tokens=3))
    while engine.has_work:
        engine.step()
    assert len(heard.of("finished")) == 5
    assert caplog.text.count("dist0 1.0") == 1


def test_offline_batches_are_told_at_their_end() -> None:
    heard = Recorder()
    engine = real_engine(EngineListeners.of(manager(heard), 3), {}, overlap=False)
    requests = [EngineRequest(np.full(4, 11, np.int32), SamplingParams(max_tokens=3), seed=i) for i in range(4)]
    OfflineEngine(engine).generate(requests)
    assert len(heard.of("finished")) == len(heard.of("admitted")) == 4
    assert sum(map(len, heard.of("steps"))) == engine.steps
    engine.close()
    assert heard.of("stopping") == ["shutdown"]


class TestOnAThread:
    async def test_shutdown_and_requests_that_are_cut_off(self) -> None:
        heard = Recorder()
        engine = make_engine(step_s=0.005, listeners=EngineListeners.of(manager(heard), 8))
        client = InlineClient(lambda: engine)
        await client.start()
        request = EngineRequest(np.array([1, 2], np.int32), SamplingParams(max_tokens=500, ignore_eos=True), seed=3)
        stream = client.generate(request)
        await anext(stream)
        left = client.generate(request)
        await anext(left)
        await left.aclose()
        with pytest.raises(RequestError):
            await anext(client.generate(EngineRequest(np.array([], np.int32), SamplingParams(max_tokens=1))))
        await client.stop(drain=False)
        with pytest.raises(EngineDead):
            async for _ in stream:
                pass
        assert sorted(told.finish_reason for told in heard.of("finished")) == ["abort", "abort", "error"]
        assert heard.order[-1] == "stopping"
        assert heard.of("stopping") == ["shutdown"]

    async def test_failure(self) -> None:
        heard = Recorder()
        engine = make_engine(listeners=EngineListeners.of(manager(heard), 8))
        client = InlineClient(lambda: engine)
        await client.start()

        def broken() -> None:
            raise ValueError("half updated")

        engine._scheduler.schedule = broken  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineDead):
            await anext(client.generate(EngineRequest(np.array([1], np.int32), SamplingParams(max_tokens=1), seed=1)))
        await client.stop()
        assert [told.finish_reason for told in heard.of("finished")] == ["error"]
        assert len(heard.of("stopping")) == 1
        assert "half updated" in heard.of("stopping")[0]
