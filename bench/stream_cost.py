"""Processor time of the server's half of a request: to the engine's order, to the first event, and of each token.

    python bench/stream_cost.py [--route chat|completions] [--streams 64] [--tokens 128] [--rounds 5] [--cold]

No engine and no sockets: messages as an engine would send them are handed to the server's client, and what the
application sends is thrown away. So the figure can be compared on a machine that others use too. Printed, the least of
all rounds and the median: from a request to the engine's order and from the engine's first message to the first event
(what a first token waits for; with the turns of the event loop that lie between), and microseconds a token after it,
the answer's end included.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import uvloop

from core.config.loading import load_settings
from core.engine.base_client import BaseClient
from core.engine.collector import leave_started_objects
from core.engine.messages import AddRequest, Hello, StepOutputs, ToEngine
from core.metrics.prometheus import ServerMetrics
from core.registry.catalog import Catalog
from core.registry.resolve import resolve
from core.server.app import build_app
from core.server.context import Phase, ServerContext
from core.server.loading import load_service

HELLO = Hello(
    architecture="none", vocab_size=4096, context_length=4096, max_prompt_tokens=4000, num_pages=1, page_size=16,
    max_running_requests=256, eos_token_ids=[], effective={},
)  # fmt: skip


class Client(BaseClient):
    """Of an engine that is the benchmark itself."""

    def __init__(self, observer: ServerMetrics) -> None:
        super().__init__(random_seed=0, observer=observer)
        self.orders: list[AddRequest] = []
        self._became_ready(HELLO)

    def _send(self, message: ToEngine) -> None:
        if isinstance(message, AddRequest):
            self.orders.append(message)

    def steps(self, num_tokens: int) -> list[StepOutputs]:
        """Everybody's tokens, a message a step."""
        ids, draw = np.array([order.id for order in self.orders], np.int64), random.Random(0)
        made = []
        for number in range(num_tokens):
            tokens = np.array([draw.randrange(300, 4000) for _ in ids], np.int32)
            finish = np.full(len(ids), 2 if number == num_tokens - 1 else 0, np.uint8)
            first = range(len(ids)) if number == 0 else ()
            made.append(
                StepOutputs(
                    ids.tobytes(), tokens.tobytes(), finish.tobytes(), first=dict.fromkeys(first, 0),
                    queue_s=dict.fromkeys(first, 0.001),
                )
            )  # fmt: skip
        return made

    def take(self, message: StepOutputs) -> None:
        """As if it had come from the engine."""
        self._handle(message)


@dataclass(slots=True)
class Sent:
    """What the application sent for one request: messages of bodies."""

    num_bodies: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """Of one round: seconds of processor time a request or a token, and turns of the event loop."""

    asked_s: float
    asked_turns: int
    first_s: float
    first_turns: int
    token_s: float


def request(route: str, tokens: int) -> tuple[str, bytes]:
    """(path, body)"""
    body: dict[str, Any] = {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    if route == "chat":
        return "/v1/chat/completions", json.dumps(
            body | {"messages": [{"role": "user", "content": "Tell me something about rivers."}]}
        ).encode()
    return "/v1/completions", json.dumps(body | {"prompt": list(range(3, 67))}).encode()


async def call(app: Any, path: str, body: bytes, told: Sent) -> None:
    """One request; counts in `told`."""
    sent = False
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message
        else:
            told.num_bodies += 1

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [
            (b"host", b"127.0.0.1:8000"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip, deflate"),
            (b"connection", b"keep-alive"), (b"user-agent", b"bench"), (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    ended.set()


async def turns_until(done: Callable[[], bool]) -> int:
    """Turns of the event loop until `done`."""
    num = 0
    while not done():
        num += 1
        await asyncio.sleep(0)
    return num


async def measure(app: Any, client: Client, args: argparse.Namespace, asked: tuple[str, bytes]) -> Found:
    """One round: so many requests at once, so many tokens each."""
    path, body = asked
    client.orders.clear()
    told = [Sent() for _ in range(args.streams)]
    forget_caches(args.cold)
    begin_s = time.process_time()
    tasks = [asyncio.create_task(call(app, path, body, each)) for each in told]
    asked_turns = await turns_until(lambda: len(client.orders) == args.streams)
    asked_s = (time.process_time() - begin_s) / args.streams
    await asyncio.sleep(0)  # what the application does while the engine works
    first, *others = client.steps(args.tokens)
    forget_caches(args.cold)
    begin_s = time.process_time()
    client.take(first)
    first_turns = await turns_until(lambda: all(each.num_bodies for each in told))
    first_s = (time.process_time() - begin_s) / args.streams
    spent_s = 0.0
    for message in others:
        forget_caches(args.cold)
        begin_s = time.process_time()
        client.take(message)
        for _ in range(2):  # turns of the loop, as a socket would leave
            await asyncio.sleep(0)
        spent_s += time.process_time() - begin_s
    begin_s = time.process_time()
    await asyncio.gather(*tasks)
    spent_s += time.process_time() - begin_s
    least = min(each.num_bodies for each in told)
    assert least >= args.tokens * 0.9, f"tokens came together: {least} messages"
    return Found(asked_s, asked_turns, first_s, first_turns, spent_s / (args.streams * max(1, len(others))))


def forget_caches(really: bool) -> None:
    """What the processor keeps close is somebody else's, as after a step of an engine on the same cores."""
    if really:
        OTHERS.sum()


OTHERS = np.ones(4 << 20, np.int64)  # 32 MiB


async def run(args: argparse.Namespace, profiled: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
    settings = load_settings({"model": args.model, "log_interval_s": 0}, {}, origin="argument").settings
    resolution = resolve(settings, Catalog.scan())
    metrics = ServerMetrics("demo")
    client = Client(metrics)
    ctx = ServerContext(settings.server, metrics, client)  # type: ignore[arg-type]
    app = build_app(ctx)
    service = load_service(settings, resolution, "demo")
    eos = service(client, HELLO).tokenizer.eos_token_ids  # type: ignore[arg-type]
    ctx.service = service(client, msgspec.structs.replace(HELLO, eos_token_ids=list(eos)))  # type: ignore[arg-type]
    ctx.phase = Phase.READY
    leave_started_objects()
    asked = request(args.route, args.tokens)
    await measure(app, client, args, asked)
    found = [await profiled(measure(app, client, args, asked)) for _ in range(args.rounds)]
    print(f"{args.route}, {args.streams} streams, least (median) of {args.rounds} rounds:")
    for what, values, turns in (
        ("to the order", [each.asked_s for each in found], found[-1].asked_turns),
        ("to the first event", [each.first_s for each in found], found[-1].first_turns),
        ("each token after it", [each.token_s for each in found], None),
    ):
        least, median = min(values) * 1e6, statistics.median(values) * 1e6
        print(f"{what:>20}: {least:6.1f} ({median:.1f}) us" + (f", {turns} turns" if turns is not None else ""))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--route", choices=("chat", "completions"), default="chat")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cold", action="store_true", help="let other work use the processor's caches in between")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    args = parser.parse_args()
    profile = cProfile.Profile()

    async def profiled(work: Awaitable[Any]) -> Any:
        if not args.profile:
            return await work
        profile.enable()
        try:
            return await work
        finally:
            profile.disable()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(args, profiled))
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
