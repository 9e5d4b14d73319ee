"""A real child process with a fake engine: streams, cancel, death, restart, start failures, orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import EOS, KILLS_PROCESS, LAUNCH_RAISES, NEVER_ENDS, expected, finish_of

from core.config.sections import EngineSettings, Settings
from core.engine.base_client import State
from core.engine.child import EngineProcess
from core.engine.client import EngineRequest
from core.engine.process_client import ProcessClient
from core.interfaces.errors import CapacityError, EngineDead, EngineError, Overloaded, RequestError
from core.interfaces.params import SamplingParams


def request(prompt: list[int], seed: int = 1, **sampling) -> EngineRequest:
    return EngineRequest(np.array(prompt, np.int32), SamplingParams(**sampling), seed=seed)


async def collect(client, one: EngineRequest):
    tokens, chunks = [], []
    async for chunk in client.generate(one):
        tokens += chunk.tokens
        chunks.append(chunk)
    return tokens, chunks


def settings(**engine) -> Settings:
    return Settings(engine=EngineSettings(**engine))


def gone(pid: int) -> bool:
    """Whether no such process runs; a zombie that its (foreign) parent has not reaped counts as gone."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def wait_gone(pid: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return gone(pid)


async def until(condition, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(factory: str = "build", config: Settings | None = None, **options):
    client = ProcessClient(config or settings(), factory=f"engine_fakes:{factory}", **options)
    await client.start()
    pid = client.pid
    try:
        yield client
    finally:
        await client.stop(drain=False)
        assert gone(pid)


async def test_hello_and_generate() -> None:
    progress = []
    async with running(on_progress=lambda *args: progress.append(args)) as client:
        assert client.hello.architecture == "Fake"
        assert client.hello.effective["pid"] == str(client.pid)
        assert client.hello.load_s > 0
        assert progress == [("weights", 0.5)]
        assert client.ready
        assert client.alive
        tokens, chunks = await collect(client, request([1, 2, 3], seed=5, max_tokens=8))
        want = expected([1, 2, 3], 5, 8)
        assert tokens == want
        assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + [finish_of(want)]
        assert chunks[0].cached_tokens == 3
        assert client.num_requests == 0
        await client.flush_cache()


async def test_many_streams_each_get_their_own() -> None:
    async with running() as client:
        jobs = [request([i] * (i % 40 + 1), seed=i, max_tokens=20, logprobs=1 if i % 10 == 0 else None)
                for i in range(200)]  # fmt: skip
        for i, (tokens, chunks) in enumerate(await asyncio.gather(*(collect(client, job) for job in jobs))):
            assert tokens == expected([i] * (i % 40 + 1), i, 20)
            logprobs = [top for chunk in chunks for top in chunk.logprobs or ()]
            assert len(logprobs) == (len(tokens) if i % 10 == 0 else 0)


async def test_a_slow_reader_gets_several_tokens_at_once() -> None:
    async with running() as client:
        reader = client.generate(request([1], seed=8, max_tokens=30))
        first = await anext(reader)
        await until(lambda: client.num_requests == 0)
        rest = [chunk async for chunk in reader]
        assert len(rest) == 1
        assert first.tokens + rest[0].tokens == expected([1], 8, 30)
        assert rest[0].finish_reason == finish_of(expected([1], 8, 30))


async def test_stop_token_is_named() -> None:
    seed = next(s for s in range(200) if len(expected([1], s, 40)) < 40)
    async with running() as client:
        _, chunks = await collect(client, request([1], seed=seed, max_tokens=40))
        assert (chunks[-1].finish_reason, chunks[-1].stop_token) == ("stop", EOS)
        assert [c.stop_token for c in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("how", ["close", "cancel_task"])
async def test_leaving_early_cancels_exactly_once(how: str) -> None:
    async with running() as client:
        sent = []
        send = client._send
        client._send = lambda message: (sent.append(type(message).__name__), send(message))
        one = request([1], seed=3, max_tokens=5_000, ignore_eos=True)
        one.prompt = np.array([50], np.int32)
        reader = client.generate(one)
        await anext(reader)
        if how == "close":
            await reader.aclose()
        else:

            async def read() -> None:
                async for _ in reader:
                    pass

            task = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert sent.count("CancelRequest") == 1
        assert client.num_requests == 0
        await collect(client, request([2], max_tokens=2))
        await until(lambda: client._stats.get("running_requests") == 0)  # freed over there too
        assert sent.count("CancelRequest") == 1


async def test_finished_requests_are_not_cancelled() -> None:
    async with running() as client:
        sent = []
        send = client._send
        client._send = lambda message: (sent.append(type(message).__name__), send(message))
        await collect(client, request([1], max_tokens=3))
        assert sent == ["AddRequest"]


async def test_a_refused_request_raises_its_error() -> None:
    async with running() as client:
        with pytest.raises(RequestError, match="prompt is empty") as caught:
            await collect(client, request([], max_tokens=3))
        assert (caught.value.param, caught.value.code) == ("prompt", "empty_prompt")
        with pytest.raises(RequestError) as caught:
            await collect(client, request([1] * 10_000, max_tokens=3))
        assert caught.value.status == 413


async def test_overloaded() -> None:
    async with running("build_small_queue") as client:
        jobs = [asyncio.create_task(collect(client, request([i], max_tokens=5))) for i in range(10)]
        done = await asyncio.gather(*jobs, return_exceptions=True)
        refused = [d for d in done if isinstance(d, Overloaded)]
        served = [d for d in done if not isinstance(d, BaseException)]
        assert refused
        assert served
        assert len(refused) + len(served) == 10
        assert refused[0].retry_after_s == 2


async def test_a_failing_step_is_an_error_chunk_and_others_go_on() -> None:
    async with running() as client:
        _, chunks = await collect(client, request([LAUNCH_RAISES], max_tokens=5))
        assert chunks[-1].finish_reason == "error"
        assert "launch failed" in chunks[-1].error
        tokens, _ = await collect(client, request([2], seed=2, max_tokens=5))
        assert tokens == expected([2], 2, 5)


async def test_kill_mid_stream_ends_every_stream_and_restarts() -> None:
    async with running("build_slow") as client:
        pid = client.pid
        readers = [client.generate(request([50 + i], seed=3, max_tokens=1000, ignore_eos=True)) for i in range(20)]
        await asyncio.gather(*(anext(reader) for reader in readers))
        os.kill(pid, signal.SIGKILL)

        async def rest(reader) -> None:
            async for _ in reader:
                pass

        done = await asyncio.gather(*(rest(reader) for reader in readers), return_exceptions=True)
        ended = [d for d in done if isinstance(d, EngineDead)]
        # A text may have met its end-of-text token just before.
        assert len(ended) + done.count(None) == 20
        assert len(ended) >= 15
        assert "signal 9" in ended[0].message
        assert not client.ready
        with pytest.raises(EngineDead, match="starting"):
            await collect(client, request([1], max_tokens=3))
        await until(lambda: client.ready)
        assert client.num_restarts == 1
        assert client.pid != pid
        tokens, _ = await collect(client, request([2], seed=2, max_tokens=5))
        assert tokens == expected([2], 2, 5)


async def test_idle_death_is_noticed_and_restarted() -> None:
    async with running() as client:
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: client.num_restarts == 1)
        assert client.ready


async def test_policy_exit() -> None:
    fatal = []
    async with running(config=settings(on_engine_death="exit"), on_fatal=fatal.append) as client:
        with pytest.raises(EngineDead):
            await collect(client, request([KILLS_PROCESS], seed=2, max_tokens=100))
        assert len(fatal) == 1
        assert (client.state, client.ready, client.alive) == (State.DEAD, False, False)


async def test_three_deaths_in_a_minute_are_a_crash_loop() -> None:
    fatal = []
    async with running(on_fatal=fatal.append) as client:
        for deaths in (1, 2, 3):
            assert not fatal
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda deaths=deaths: client.num_restarts == deaths or fatal)
        assert "3 engine deaths" in fatal[0].message
        assert not client.alive


async def test_an_engine_that_gives_up_says_why() -> None:
    fatal = []
    async with running(config=settings(on_engine_death="exit"), on_fatal=fatal.append) as client:
        for _ in range(2):
            await collect(client, request([LAUNCH_RAISES], max_tokens=5))
        with pytest.raises(EngineDead, match="3 steps in a row failed; the last: RuntimeError: launch failed"):
            await collect(client, request([LAUNCH_RAISES], max_tokens=5))
        assert len(fatal) == 1


async def test_start_failure_reaches_the_parent() -> None:
    client = ProcessClient(settings(), factory="engine_fakes:build_fails")
    with pytest.raises(CapacityError, match="needs 10 GiB") as caught:
        await client.start()
    assert caught.value.hint == "lower --max-total-tokens"
    assert client.pid is None
    await client.stop()


async def test_last_words_may_come_after_the_end_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's own thread may be later than the kernel's word that the process is gone."""
    client = ProcessClient(settings(), factory="engine_fakes:build_fails")
    read, exited, gone = client._read_one, client._child_exited, []

    def late() -> bool:
        """Nothing until the process is gone, and nothing at once then."""
        if not gone or gone.pop():
            return False
        gone.append(False)
        return read()

    def seen() -> None:
        gone[:] = [False, True]
        exited()

    monkeypatch.setattr(client, "_read_one", late)
    monkeypatch.setattr(client, "_child_exited", seen)
    with pytest.raises(CapacityError, match="needs 10 GiB"):
        await client.start()
    await client.stop()


async def test_crash_while_starting() -> None:
    client = ProcessClient(settings(), factory="engine_fakes:build_crashes")
    with pytest.raises(EngineDead, match="signal 9 while starting"):
        await client.start()
    await client.stop()


async def test_factory_that_does_not_import() -> None:
    client = ProcessClient(settings(), factory="engine_fakes:no_such")
    with pytest.raises(EngineError, match="cannot import the engine factory"):
        await client.start()
    await client.stop()


async def test_start_timeout_and_stop_while_starting() -> None:
    client = ProcessClient(settings(), factory="engine_fakes:build_hangs", start_timeout_s=0.3)
    with pytest.raises(EngineDead, match="no sign of life"):
        await client.start()
    client = ProcessClient(settings(), factory="engine_fakes:build_hangs")
    start = asyncio.create_task(client.start())
    await until(lambda: client.pid is not None)
    pid = client.pid
    await client.stop()
    with pytest.raises(EngineDead, match="stopped while starting"):
        await start
    assert gone(pid)


async def test_process_spawned_early_and_never_started() -> None:
    process = EngineProcess.spawn("engine_fakes:build")
    pid = process.pid
    client = ProcessClient(settings(), factory="engine_fakes:build", process=process)
    await client.stop()
    assert gone(pid)


async def test_stuck_step_fails_liveness_but_not_idleness() -> None:
    async with running(liveness_timeout_s=2.5) as client:
        await asyncio.sleep(0)
        reader = client.generate(request([NEVER_ENDS], max_tokens=100))
        await anext(reader)
        assert client.alive
        await until(lambda: not client.alive)
        assert client.ready
        await reader.aclose()


async def test_drain_lets_streams_finish() -> None:
    async with running("build_slow") as client:
        pid = client.pid
        job = asyncio.create_task(collect(client, request([1], seed=3, max_tokens=5)))
        await until(lambda: client.num_requests == 1)
        await client.stop(drain=True, timeout_s=30)
        tokens, chunks = await job
        assert tokens == expected([1], 3, 5)
        assert chunks[-1].finish_reason == finish_of(tokens)
        assert gone(pid)
        with pytest.raises(EngineDead, match="stopped"):
            await collect(client, request([1], max_tokens=1))


async def test_drain_timeout_ends_the_rest() -> None:
    async with running("build_slow") as client:
        job = asyncio.create_task(collect(client, request([50], seed=3, max_tokens=5_000)))
        await until(lambda: client.num_requests == 1)
        await client.stop(drain=True, timeout_s=0.1)
        with pytest.raises(EngineDead, match="shutting down"):
            await job


async def test_stop_takes_a_stuck_engine_and_its_workers_along() -> None:
    client = ProcessClient(settings(), factory="engine_fakes:build_with_worker")
    hello = await client.start()
    pid, worker = client.pid, int(hello.effective["worker"])
    assert not gone(worker)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: client.num_restarts == 1)
    assert wait_gone(worker)
    worker = int(client.hello.effective["worker"])
    os.kill(client.pid, signal.SIGSTOP)
    pid = client.pid
    stop = asyncio.create_task(client.stop(drain=False))
    await stop
    assert gone(pid)
    assert wait_gone(worker)


async def test_signals_for_the_terminal_do_not_end_the_child() -> None:
    async with running() as client:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(client.pid, number)
        assert os.getpgid(client.pid) == client.pid != os.getpgrp()
        assert (await collect(client, request([2], seed=2, max_tokens=5)))[0] == expected([2], 2, 5)


async def test_malformed_messages_do_not_end_the_child() -> None:
    async with running() as client:
        for raw in (b"", b"\xff\xff", b"\x81\xa4type\xa3add", b"\x81\xa4type\xa6nobody", os.urandom(100)):
            client._socket.send(raw)
        assert (await collect(client, request([2], seed=2, max_tokens=5)))[0] == expected([2], 2, 5)
        assert client.num_restarts == 0


async def test_the_socket_has_no_name_once_it_is_connected() -> None:
    process = EngineProcess.spawn("engine_fakes:build")
    folder = Path(process.address.removeprefix("ipc://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    async with running(process=process) as client:
        assert not folder.exists()
        assert (await collect(client, request([2], seed=2, max_tokens=5)))[0] == expected([2], 2, 5)


async def test_two_engines_in_one_process() -> None:
    async with running() as one, running() as other:
        assert one.pid != other.pid
        jobs = [collect(c, request([i], seed=i, max_tokens=9)) for i in range(10) for c in (one, other)]
        done = await asyncio.gather(*jobs)
        for i in range(10):
            assert done[2 * i][0] == done[2 * i + 1][0] == expected([i], i, 9)
        os.kill(one.pid, signal.SIGKILL)
        await until(lambda: one.num_restarts == 1)
        assert other.ready
        assert other.num_restarts == 0


async def test_stats_arrive() -> None:
    async with running() as client:
        await collect(client, request([1] * 20, max_tokens=4))
        await until(lambda: client._stats.get("prefill_tokens") == 20)
        assert (await client.stats())["kv_pages"] == 100


async def test_idle_engine_does_not_spin() -> None:
    async with running() as client:

        def ticks() -> int:
            fields = Path(f"/proc/{client.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        await asyncio.sleep(0.3)
        before = ticks()
        await asyncio.sleep(1.0)
        assert ticks() - before < 20  # of 100 a second


@pytest.mark.parametrize("factory", ["build_with_worker", "build_hangs"])
def test_child_and_its_workers_die_with_a_killed_parent(factory: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio
            from core.config.sections import Settings
            from core.engine.process_client import ProcessClient

            async def main():
                client = ProcessClient(Settings(), factory="engine_fakes:{factory}")
                start = asyncio.create_task(client.start())
                while client.pid is None:
                    await asyncio.sleep(0.01)
                if "{factory}" == "build_hangs":
                    await asyncio.sleep(1)
                    print(client.pid, flush=True)
                else:
                    hello = await start
                    print(client.pid, hello.effective["worker"], flush=True)
                await asyncio.sleep(100)

            asyncio.run(main())
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        assert not any(gone(pid) for pid in pids)
        parent.kill()
        parent.wait()
        try:
            assert all(wait_gone(pid) for pid in pids)
        finally:
            for pid in pids:
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)
