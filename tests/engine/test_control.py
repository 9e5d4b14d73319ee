"""Controls of a running engine: pause, resume, abort by name, profiles, levels, labels in its log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import WAIT_RAISES, expected, make_engine

from core.engine.client import EngineRequest
from core.engine.control import OPERATIONS, EngineControl
from core.engine.inline_client import InlineClient
from core.interfaces.errors import EngineError
from core.interfaces.params import SamplingParams
from core.tracing.record import RequestRecord, follow, unfollow


def request(prompt: list[int], seed: int = 8, **sampling) -> EngineRequest:
    return EngineRequest(np.array(prompt, np.int32), SamplingParams(**sampling), seed=seed)


@asynccontextmanager
async def running(step_s: float = 0.002, **options) -> AsyncIterator[InlineClient]:
    client = InlineClient(lambda: make_engine(step_s=step_s), **options)
    await client.start()
    try:
        yield client
    finally:
        await client.stop(drain=False)


async def collect(client: InlineClient, one: EngineRequest) -> list[int]:
    return [token async for chunk in client.generate(one) for token in chunk.tokens]


async def until(condition, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_pause_in_place_keeps_requests_and_takes_new_ones() -> None:
    async with running(step_s=0.005) as client:
        first = asyncio.create_task(collect(client, request([1], max_tokens=30)))
        await until(lambda: client.num_tokens > 4)
        await client.control("pause")
        assert client.paused
        second = asyncio.create_task(collect(client, request([2], max_tokens=5)))
        await until(lambda: client.num_requests == 2)
        before = (await client.control("stats"))["steps"]
        assert (await client.control("stats"))["waiting_requests"] == 1
        assert (await client.control("stats"))["steps"] == before
        assert not first.done()
        assert not second.done()
        await client.control("resume")
        assert not client.paused
        assert await first == expected([1], 8, 30)
        assert await second == expected([2], 8, 5)


async def test_what_stands_because_somebody_wants_it_is_alive() -> None:
    async with running(liveness_timeout_s=1.2) as client:
        await client.control("pause")
        reader = asyncio.create_task(collect(client, request([1], max_tokens=3)))
        client._last_progress_s -= 1.2
        assert not client.alive
        await until(lambda: client.alive, 5.0)  # the next heartbeat says so
        await client.control("resume")
        assert await reader == expected([1], 8, 3)


async def test_a_request_can_be_cancelled_while_the_engine_is_paused() -> None:
    async with running() as client:
        reader = client.generate(request([1], max_tokens=1000, ignore_eos=True))
        await anext(reader)
        await client.control("pause")
        await reader.aclose()
        async with asyncio.timeout(10):
            while (await client.control("stats"))["running_requests"]:
                await asyncio.sleep(0.01)


async def named(name: str, client: InlineClient, **sampling) -> list[int]:
    token = follow(RequestRecord(name, names={f"reply-{name}"}))
    try:
        return await collect(client, request([1], **sampling))
    finally:
        unfollow(token)


@pytest.mark.parametrize("name", ["a", "reply-a"])
async def test_abort_by_name_ends_that_request_and_no_other(name: str) -> None:
    async with running(step_s=0.01) as client:
        one = asyncio.create_task(named("a", client, max_tokens=5000, ignore_eos=True))
        other = asyncio.create_task(named("b", client, max_tokens=10))
        await until(lambda: client.num_requests == 2 and client.num_tokens > 4)
        assert client.abort(["nobody"]) == 0
        assert client.abort([name]) == 1
        tokens = await one
        assert 0 < len(tokens) < 5000  # what there was
        assert await other == expected([1], 8, 10)
        assert client.abort() == 0
        async with asyncio.timeout(10):  # what it held is free
            while (await client.control("stats"))["running_requests"]:
                await asyncio.sleep(0.01)


async def test_the_record_of_a_request_has_its_times() -> None:
    async with running() as client:
        record = RequestRecord("r")
        token = follow(record)
        assert await collect(client, request([1, 2], max_tokens=4)) == expected([1, 2], 8, 4)
        unfollow(token)
        [told] = record.generations
        assert (record.num_begun, told.prompt_tokens, told.generated_tokens, told.cached_tokens) == (1, 2, 4, 3)
        assert told.queue_s is not None
        assert told.first_s is not None
        assert told.last_s is not None
        assert record.start_s <= told.arrival_s <= told.arrival_s + told.queue_s <= told.first_s
        assert told.first_s < told.last_s <= told.end_s


async def test_unknown_operations_are_refused_by_name() -> None:
    async with running() as client:
        with pytest.raises(EngineError, match="no operation 'explode'") as caught:
            await client.control("explode")
        assert "stop_profile" in (caught.value.hint or "")
    control = EngineControl(make_engine())
    assert all(hasattr(control, f"_{op}") for op in OPERATIONS)


async def test_the_engines_log_names_a_request_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as client:
        with pytest.raises(Exception, match="device error"):
            await _failing(client)
    told = [record.getMessage() for record in caplog.records if "request mine failed" in record.getMessage()]
    assert len(told) == 1
    assert "device error" in told[0]


async def _failing(client: InlineClient) -> None:
    token = follow(RequestRecord("mine"))
    try:
        async for chunk in client.generate(request([WAIT_RAISES], max_tokens=3)):
            if chunk.error:
                raise EngineError(chunk.error)
    finally:
        unfollow(token)


async def test_a_profile_of_some_steps_ends_by_itself(tmp_path: Path) -> None:
    async with running() as client:
        started = await client.control(
            "start_profile", timeout_s=280, folder=str(tmp_path / "a"), num_steps=3, prefix="p"
        )  # the first one imports torch
        with pytest.raises(EngineError, match="already"):
            await client.control("start_profile", folder=str(tmp_path))
        await collect(client, request([1], max_tokens=8))
        done = await client.control("stop_profile", timeout_s=280)
        assert done["path"] == started["path"]
        assert done["num_steps"] == 3
        trace = Path(done["path"])
        assert trace.parent == tmp_path / "a"
        assert trace.name.startswith("p-")
        assert trace.stat().st_mode & 0o777 == 0o600
        assert "traceEvents" in json.loads(trace.read_text())


async def test_a_trace_that_cannot_be_written_is_an_error_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.profiler as profiler

    monkeypatch.setattr(profiler, "supported_activities", lambda: {profiler.ProfilerActivity.CPU})
    (tmp_path / "file").write_text("")
    async with running() as client:
        with pytest.raises(EngineError, match="cannot write a trace"):
            await client.control("start_profile", folder=str(tmp_path / "file"))
        with pytest.raises(EngineError, match="no profile was started"):
            await client.control("stop_profile")
        with pytest.raises(EngineError, match="records no device activity"):
            await client.control("start_profile", folder=str(tmp_path), activities=["GPU"])
        assert await collect(client, request([1], max_tokens=3)) == expected([1], 8, 3)


async def test_the_log_level_changes_while_it_runs() -> None:
    before = logging.getLogger().level, logging.getLogger("core").level
    try:
        async with running() as client:
            await client.control("set_log_level", level="error")
            assert logging.getLogger("core.engine").getEffectiveLevel() == logging.ERROR
            assert client._log_level == "error"
    finally:
        logging.getLogger().setLevel(before[0])
        logging.getLogger("core").setLevel(before[1])
