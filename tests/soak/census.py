"""What a server holds, counted from outside: its own metrics, and the processes as the system sees them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import psutil

from tests.soak.wire import ask

# Zero when nothing is asked of the server; all labels of a metric together.
ZERO_AT_REST = (
    "core_running_requests", "core_waiting_requests", "core_requests_in_flight", "core_tokens_in_flight",
    "core_tenant_running_requests", "core_grammar_waiting", "core_grammar_threads_lost", "core_kv_usage_ratio",
)  # fmt: skip
# Descriptors and threads come and go a little: lazily started workers (tokenizer, grammars, logs), a scrape under way.
MAX_MORE_DESCRIPTORS = 8
MAX_MORE_THREADS = 6
# Resident memory after a warm-up with the same mix. Allowed is what is bounded and fills up late: the grammar cache (8
# MiB here) in the engine, kept responses (4 MiB) and metrics in the server, and for both the arenas of the allocator,
# one a thread. A leak of 16 KiB a request, one prompt or one reply, passes this within 4000 requests.
MAX_GROWTH_BYTES = 64 << 20


@dataclass(frozen=True)
class Held:
    """Of one process."""

    pid: int
    descriptors: int
    threads: int
    resident_bytes: int

    @classmethod
    def by(cls, process: psutil.Process) -> Held:
        """What `process` holds now."""
        return cls(process.pid, process.num_fds(), process.num_threads(), process.memory_info().rss)


@dataclass(frozen=True)
class Census:
    """Both processes of a server at rest."""

    server: Held
    engine: Held

    @classmethod
    def take(cls, server: psutil.Process, engine: psutil.Process) -> Census:
        """Of a server at rest; see `quiet`."""
        return cls(Held.by(server), Held.by(engine))

    def leaks_since(self, before: Census) -> list[str]:
        """What has grown by more than is allowed; a process that was replaced is not compared."""
        found = []
        for name, old, new in (("server", before.server, self.server), ("engine", before.engine, self.engine)):
            if old.pid != new.pid:
                continue
            for what, was, now, most in (
                ("descriptors", old.descriptors, new.descriptors, MAX_MORE_DESCRIPTORS),
                ("threads", old.threads, new.threads, MAX_MORE_THREADS),
                ("resident bytes", old.resident_bytes, new.resident_bytes, MAX_GROWTH_BYTES),
            ):
                if now - was > most:
                    found.append(f"{name}: {what} went from {was} to {now}, more than {most} above")
        return found


async def metrics(port: int) -> dict[str, float]:
    """Each metric's sum over its labels."""
    totals: dict[str, float] = {}
    for line in (await ask(port, "GET", "/metrics")).text.splitlines():
        if line and not line.startswith("#"):
            sample, value = line.rsplit(" ", 1)
            name = sample.split("{", 1)[0]
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


async def quiet(port: int, timeout_s: float = 60.0) -> list[str]:
    """Wait until the server says that it holds nothing; what it still holds after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        values = await metrics(port)
        held = [f"{name} is {values[name]:g}" for name in ZERO_AT_REST if values.get(name)]
        if (in_flight := values.get("core_http_requests_in_flight", 1)) > 1:  # this scrape is one
            held.append(f"core_http_requests_in_flight is {in_flight:g}")
        free = values.get("core_kv_pages_free", 0) + values.get("core_kv_pages_cached", 0)
        if not held and "core_kv_pages" not in values:
            held.append("there are no metrics of the engine")
        if free != values.get("core_kv_pages", 0):
            held.append(f"{values.get('core_kv_pages', 0) - free:g} pages are neither free nor cached")
        if not held or time.monotonic() > deadline_s:
            return held
        await asyncio.sleep(0.3)
