"""One soak: warm up, mixed load, faults; a census between them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.process import ServerProcess
from tests.soak.cases import Case, draw
from tests.soak.census import Census, metrics, quiet
from tests.soak.report import Report
from tests.soak.wire import Answer, Manner, ask

KEYS = ("soak-key-one", "soak-key-two", "soak-key-three")
ADMIN_KEY = "soak-admin-key"
MAX_QUEUED = 64
ANSWER_S = 90.0  # a request without an answer after so long has none
FLAGS = (
    "--served-model-name", "soak", "--cpu-threads", "1", "--max-running-requests", "24", "--max-queued-requests",
    str(MAX_QUEUED), "--max-total-tokens", "8192", "--pooling", "mean", "--grammar-timeout-s", "3", "--grammar-cache-bytes",  # noqa: E501
    str(8 << 20), "--response-store", "32", "--response-store-bytes", str(4 << 20), "--max-body-bytes", str(2 << 20),
    "--max-n", "4", "--priority-preemption", "--admin-api-key", ADMIN_KEY, "--log-requests", "--log-requests-level", "3",  # noqa: E501
    "--log-format", "json",
)  # fmt: skip


def keys_file(folder: Path) -> Path:
    """Three tenants: free, limited in concurrency, and one with cached prefixes of its own."""
    path = folder / "keys.toml"
    limits = ("priority_range = [-10, 10]", "max_concurrent = 4", "cache_isolation = true\nmax_tokens = 12")
    path.write_text("".join(
        f'[[keys]]\nname = "tenant-{at}"\nkey = "{key}"\n{limit}\n\n'
        for at, (key, limit) in enumerate(zip(KEYS, limits, strict=True))
    ))  # fmt: skip
    path.chmod(0o600)
    return path


class Soak:
    """Drives one server. rng: of everything that is random here."""

    def __init__(self, server: ServerProcess, seed: int, streams: int = 24) -> None:
        self.server = server
        self.report = Report(seed)
        self._rng = random.Random(seed)
        self._streams = streams

    # Load

    async def mixed(self, name: str, seconds: float, most: int = 10**9) -> None:
        """Requests of every kind for so long, or so many."""
        end_s, left, before = time.monotonic() + seconds, most, self.report.num_requests

        async def client() -> None:
            nonlocal left
            while time.monotonic() < end_s and left > 0:
                left -= 1
                await self._one(draw(self._rng, KEYS))

        await asyncio.gather(*(client() for _ in range(self._streams)))
        self.report.phases[name] = {"requests": self.report.num_requests - before}

    async def _one(self, case: Case, *, checked: bool = True) -> Answer:
        aborting = asyncio.create_task(self._abort_later(case.rid)) if case.rid is not None else None
        started_s = time.monotonic()
        asked = ask(
            self.server.port, case.method, case.route, case.body, case.headers, case.manner,
            random.Random(self._rng.random()),
        )  # fmt: skip
        try:
            answer = await asyncio.wait_for(asked, ANSWER_S)
            problem = case.problem(answer)
        except TimeoutError:
            answer, problem = Answer(), f"no answer within {ANSWER_S:g} s"
        except OSError as error:
            answer, problem = Answer(), f"the connection failed: {error}"
        self.report.add(case.route, answer.status, time.monotonic() - started_s, case.manner)
        if problem and checked:
            self.report.problems.append(f"{case.method} {case.route} {case.body[:300]!r} ({case.manner}): {problem}")
        if aborting is not None:
            await aborting
        return answer

    async def _abort_later(self, rid: str) -> None:
        await asyncio.sleep(self._rng.choice((0.0, 0.02, 0.2)))
        body = json.dumps({"rid": rid}).encode()
        await self._one(Case("/abort_request", body, headers={"authorization": f"Bearer {ADMIN_KEY}"}))

    async def rest(self, name: str, since: Census | None = None) -> Census:
        """Wait until the server holds nothing, and count; leaks are problems."""
        self.report.problems += [f"after {name}: {held}" for held in await quiet(self.server.port)]
        taken = Census.take(psutil.Process(self.server.process.pid), self.server.engine())
        if since is not None:
            self.report.problems += [f"after {name}: {leak}" for leak in taken.leaks_since(since)]
        told = self.report.phases.setdefault(name, {})
        for process, held in (("server", taken.server), ("engine", taken.engine)):
            told[process] = f"{held.descriptors} fds, {held.threads} threads, {held.resident_bytes >> 20} MiB"
        return taken

    # Faults

    async def storm(self) -> None:
        """More requests at once than may wait: each is answered 200 or 429."""
        body = {"prompt": "Hello", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        cases = [_completion(body) for _ in range(4 * MAX_QUEUED)]
        answers = await asyncio.gather(*(self._one(case) for case in cases))
        counts = _counts(answers)
        self.report.phases["storm"] = counts
        if set(counts) != {"200", "429"} or counts["429"] < 2 * MAX_QUEUED - 24:
            self.report.problems.append(f"storm: answers {counts}")
        if any("retry-after" not in answer.headers for answer in answers if answer.status == 429):
            self.report.problems.append("storm: a 429 without retry-after")

    async def standstill(self, seconds: float) -> None:
        """The engine's process stands still under load; afterwards everything is answered."""
        engine = self.server.engine()
        asked = [asyncio.create_task(self._one(draw(self._rng, KEYS))) for _ in range(40)]
        await asyncio.sleep(0.2)
        engine.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            engine.send_signal(signal.SIGCONT)
        self.report.phases["standstill"] = _counts(await asyncio.gather(*asked))

    async def engine_killed(self) -> None:
        """kill -9 of the engine under load: all that is open ends, the engine comes back, requests work again."""
        victim = self.server.engine()
        body = {"prompt": "Hello", "max_tokens": 1000, "ignore_eos": True}
        cases = [_completion(body | {"stream": at % 2 == 0}) for at in range(24)]
        asked = [asyncio.create_task(self._one(case)) for case in cases]
        await self._until("core_running_requests", lambda value: value >= 4)
        victim.kill()
        answers = await asyncio.gather(*asked)
        failed = [answer for answer in answers if answer.status == 503 or '"error"' in answer.text]
        self.report.phases["engine killed"] = {**_counts(answers), "ended with an error": len(failed)}
        if not failed:
            self.report.problems.append("engine killed: nothing was open, so nothing was tested")
        for _ in range(600):
            if (await ask(self.server.port, "GET", "/ready")).status == 200:
                break
            await asyncio.sleep(0.1)
        again = await self._one(_completion(body | {"max_tokens": 2}))
        if again.status != 200:
            self.report.problems.append(f"engine killed: a request after the restart got {again.status}")

    async def _until(self, metric: str, holds: Any, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds((await metrics(self.server.port)).get(metric, 0.0)) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)

    async def server_killed(self) -> None:
        """kill -9 of the server under load: the engine leaves, clients see the end of their connections."""
        children = self.server.children()
        body = {"prompt": "Hello", "max_tokens": 500, "ignore_eos": True, "stream": True}
        asked = [asyncio.create_task(self._one(_completion(body), checked=False)) for _ in range(8)]
        await self._until("core_running_requests", lambda value: value >= 4)
        os.kill(self.server.process.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*asked), ANSWER_S)
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
        self.report.phases["server killed"] = {"processes left": len(alive)}
        if alive:
            self.report.problems.append(f"server killed: {len(alive)} of its processes are still there")


def _completion(body: dict[str, Any]) -> Case:
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    return Case("/v1/completions", json.dumps(body).encode(), headers=headers, streams=bool(body.get("stream")),
                manner=Manner.WHOLE)  # fmt: skip


def _counts(answers: Sequence[Answer]) -> dict[str, int]:
    found: dict[str, int] = {}
    for answer in answers:
        name = str(answer.status) if answer.status else "left"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


async def run(server: ServerProcess, *, seed: int, warm_up_s: float, load_s: float, rounds: int = 1) -> Report:
    """The whole soak of a running server, which is dead afterwards. rounds: of load and faults."""
    soak = Soak(server, seed)
    await soak.mixed("warm-up", warm_up_s)
    before = await soak.rest("warm-up")
    for at in range(rounds):
        name = f"load {at + 1}"
        await soak.mixed(name, load_s)
        await soak.rest(name, before)
        await soak.storm()
        await soak.standstill(2.0)
        await soak.rest("standstill", before)
        if at % 4 == 0:  # three deaths within a minute would be final
            await soak.engine_killed()
            await soak.rest("engine killed", before)
    await soak.server_killed()
    if "Traceback" in server.text():
        soak.report.problems.append("the server's log has a traceback")
    for secret in (*KEYS, ADMIN_KEY):
        if secret in server.text():
            soak.report.problems.append(f"the server's log holds the key {secret!r}")
    return soak.report
