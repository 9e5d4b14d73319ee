"""Processor time of the server's half of a streamed token: from the engine's message to the bytes for the socket.

    python bench/stream_cost.py [--streams 64] [--tokens 128] [--rounds 5] [--route chat|completions] [--profile]

No engine and no sockets: messages as an engine would send them are handed to the server's client, and what the
application sends is thrown away. So the figure can be compared on a machine that others use too. Printed: microseconds
a token (the least of all rounds), and milliseconds from a request to the engine's order (what a first token waits for).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import uvloop

from core.config.loading import load_settings
from core.engine.base_client import BaseClient
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

    def step(self, tokens: np.ndarray[Any, np.dtype[np.int32]], last: bool, first: bool) -> None:
        """Everybody's next token."""
        ids = np.array([order.id for order in self.orders], np.int64)
        finish = np.full(len(ids), 2 if last else 0, np.uint8)
        known = dict.fromkeys(range(len(ids)), 0) if first else {}
        self._handle(StepOutputs(ids.tobytes(), tokens.tobytes(), finish.tobytes(), first=known))


def request(route: str, tokens: int) -> tuple[str, bytes]:
    """(path, body)"""
    body: dict[str, Any] = {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    if route == "chat":
        return "/v1/chat/completions", json.dumps(
            body | {"messages": [{"role": "user", "content": "Tell me something about rivers."}]}
        ).encode()
    return "/v1/completions", json.dumps(body | {"prompt": list(range(3, 67))}).encode()


async def call(app: Any, path: str, body: bytes) -> int:
    """One request; how many messages the application sent."""
    count, sent = 0, False
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal count
        count += 1
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    ended.set()
    return count


async def measure(app: Any, client: Client, args: argparse.Namespace) -> tuple[float, float]:
    """(seconds of processor time a token, seconds from a request to its order)"""
    path, body = request(args.route, args.tokens)
    client.orders.clear()
    begin_s = time.process_time()
    tasks = [asyncio.create_task(call(app, path, body)) for _ in range(args.streams)]
    while len(client.orders) < args.streams:
        await asyncio.sleep(0)
    asked_s = (time.process_time() - begin_s) / args.streams
    draw = random.Random(0)
    steps = [np.array([draw.randrange(300, 4000) for _ in range(args.streams)], np.int32) for _ in range(args.tokens)]
    begin_s = time.process_time()
    for number, tokens in enumerate(steps):
        client.step(tokens, number == len(steps) - 1, number == 0)
        for _ in range(4):  # turns of the loop, as a socket would leave
            await asyncio.sleep(0)
    counts = await asyncio.gather(*tasks)
    spent_s = time.process_time() - begin_s
    assert min(counts) >= args.tokens * 0.9, f"tokens came together: {min(counts)} messages"
    return spent_s / (args.streams * args.tokens), asked_s


async def run(args: argparse.Namespace, profiled: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
    settings = load_settings({"model": args.model, "log_interval_s": 0}, {}, origin="argument").settings
    resolution = resolve(settings, Catalog.scan())
    metrics = ServerMetrics("demo")
    client = Client(metrics)
    ctx = ServerContext(settings.server, metrics, client)  # type: ignore[arg-type]
    app = build_app(ctx)
    ctx.service = load_service(settings, resolution, "demo")(client, HELLO)  # type: ignore[arg-type]
    ctx.phase = Phase.READY
    await measure(app, client, args)
    found = [await profiled(measure(app, client, args)) for _ in range(args.rounds)]
    token_s, asked_s = (min(values) for values in zip(*found, strict=True))
    print(f"{args.route}, {args.streams} streams: {token_s * 1e6:.1f} us a token, {asked_s * 1e3:.2f} ms a request")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--route", choices=("chat", "completions"), default="chat")
    parser.add_argument("--model", default="demo")
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
