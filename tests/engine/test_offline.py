"""Batches driven by plain calls, and the thread client."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from engine_fakes import EOS, LAUNCH_RAISES, expected, finish_of, make_engine

from core.engine.client import EngineRequest
from core.engine.inline_client import InlineClient
from core.engine.offline import OfflineEngine
from core.interfaces.errors import CapacityError, EngineDead, EngineError, Overloaded
from core.interfaces.params import SamplingParams


def request(prompt: list[int], seed: int | None = 1, **sampling) -> EngineRequest:
    return EngineRequest(np.array(prompt, np.int32), SamplingParams(**sampling), seed=seed)


@pytest.mark.parametrize("overlap", [False, True])
def test_answers_in_order_whatever_the_queue_holds(overlap: bool) -> None:
    engine = OfflineEngine(make_engine(overlap, max_running=2, max_queued=1))
    progress: dict[int, list[int]] = {}
    jobs = [request([i + 1] * (i % 7 + 1), seed=i, max_tokens=i % 9 + 1, logprobs=0) for i in range(60)]
    done = engine.generate(jobs, lambda index, chunk: progress.setdefault(index, []).extend(chunk.tokens))
    for i, chunk in enumerate(done):
        want = expected([i + 1] * (i % 7 + 1), i, i % 9 + 1)
        assert chunk.tokens == want == progress[i]
        assert chunk.finish_reason == finish_of(want)
        assert chunk.stop_token == (EOS if want[-1] == EOS else None)
        assert chunk.cached_tokens == 3
        assert chunk.logprobs is not None
        assert len(chunk.logprobs) == len(want)


def test_a_bad_request_costs_no_other_its_answer() -> None:
    engine = OfflineEngine(make_engine())
    done = engine.generate([request([], max_tokens=2), request([2], seed=2, max_tokens=2)])
    assert (done[0].finish_reason, done[0].error) == ("error", "prompt is empty")
    assert done[1].tokens == expected([2], 2, 2)
    assert engine.generate([]) == []


def test_an_exception_in_between_frees_everything() -> None:
    engine = OfflineEngine(make_engine(True))

    def interrupt(index: int, chunk: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([request([50 + i], max_tokens=1000) for i in range(5)], interrupt)
    assert not engine.engine.has_work
    assert engine.generate([request([2], seed=2, max_tokens=3)])[0].tokens == expected([2], 2, 3)


def test_an_engine_that_gives_up() -> None:
    engine = OfflineEngine(make_engine(max_running=1))
    with pytest.raises(EngineDead, match="3 steps in a row"):
        engine.generate([request([LAUNCH_RAISES], max_tokens=3) for _ in range(3)])


def test_drawn_seeds_repeat_with_a_random_seed() -> None:
    jobs = [request([1], seed=None, max_tokens=5) for _ in range(5)]
    runs = [[c.tokens for c in OfflineEngine(make_engine(), 3).generate(jobs)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({tuple(tokens) for tokens in runs[0]}) > 1


async def collect(client: InlineClient, one: EngineRequest) -> list[int]:
    return [token async for chunk in client.generate(one) for token in chunk.tokens]


@pytest.mark.parametrize("overlap", [False, True])
async def test_inline_client_streams(overlap: bool) -> None:
    client = InlineClient(lambda: make_engine(overlap, max_running=4))
    hello = await client.start()
    try:
        assert hello.architecture == "Fake"
        assert client.ready
        assert client.alive
        jobs = [collect(client, request([i], seed=i, max_tokens=9)) for i in range(30)]
        for i, tokens in enumerate(await asyncio.gather(*jobs)):
            assert tokens == expected([i], i, 9)
        await client.flush_cache()
        reader = client.generate(request([50], max_tokens=1000, ignore_eos=True))
        await anext(reader)
        with pytest.raises(EngineError, match="while requests run"):
            await client.flush_cache()
        await reader.aclose()
        assert client.num_requests == 0
    finally:
        await client.stop()
    with pytest.raises(EngineDead, match="stopped"):
        await collect(client, request([1], max_tokens=1))


async def test_inline_client_build_failure_and_overload() -> None:
    def fails():
        raise CapacityError("no room")

    client = InlineClient(fails)
    with pytest.raises(CapacityError, match="no room"):
        await client.start()
    await client.stop()

    client = InlineClient(lambda: make_engine(step_s=0.02, max_running=1, max_queued=1))
    await client.start()
    try:
        done = await asyncio.gather(
            *(collect(client, request([i], max_tokens=4)) for i in range(8)), return_exceptions=True
        )
        assert any(isinstance(d, Overloaded) for d in done)
        assert any(isinstance(d, list) for d in done)
    finally:
        await client.stop()


async def test_inline_client_gives_up() -> None:
    fatal = []
    client = InlineClient(lambda: make_engine(max_running=1), on_fatal=fatal.append)
    await client.start()
    try:
        jobs = (collect(client, request([LAUNCH_RAISES], max_tokens=4)) for _ in range(3))
        done = await asyncio.gather(*jobs, return_exceptions=True)
        assert any(isinstance(d, EngineDead) for d in done)
        assert len(fatal) == 1
        assert not client.alive
    finally:
        await client.stop()
