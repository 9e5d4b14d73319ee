"""An engine without a model: deterministic token streams, and what tests want to know about requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from core.engine.client import EngineRequest, TokenChunk
from core.engine.messages import Hello, TopLogprobs
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import EngineDead, EngineError, Overloaded

Script = Callable[[EngineRequest], list[int]]


@dataclass
class FakeEngine:
    """Implements EngineClient. Answers each request with `script(request)` one token at a time.

    fail_after: the engine dies after so many tokens. overloaded: the queue is full. gate: tokens wait for it.
    running, finished, cancelled: counts. requests: all that came.
    """

    script: Script
    eos: int = 2
    context_length: int = 256
    vocab_size: int = 400
    delay_s: float = 0.0
    fail_after: int | None = None
    error_after: int | None = None
    overloaded: bool = False
    gate: asyncio.Event | None = None
    requests: list[EngineRequest] = field(default_factory=list)
    running: int = 0
    finished: int = 0
    cancelled: int = 0
    ready: bool = True
    alive: bool = True
    flushed: int = 0
    stopped: bool = False
    paused: bool = False
    busy_flushes: int = 0
    controls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    aborts: list[Collection[str] | None] = field(default_factory=list)

    async def start(self) -> Hello:
        return self.hello()

    def hello(self) -> Hello:
        return Hello(
            architecture="NothingForCausalLM",
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            max_prompt_tokens=self.context_length - 1,
            num_pages=64,
            page_size=16,
            max_running_requests=8,
            eos_token_ids=[self.eos],
            effective={"attention": "none"},
        )

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenChunk]:
        if self.overloaded:
            raise Overloaded("the queue is full", retry_after_s=3)
        self.requests.append(request)
        self.running += 1
        done = False
        try:
            tokens = self.script(request)
            room = self.context_length - len(request.prompt)
            limit = min(request.sampling.max_tokens or room, room)
            for position, token in enumerate(tokens[:limit]):
                if self.gate is not None:
                    await self.gate.wait()
                await asyncio.sleep(self.delay_s)
                if position == self.fail_after:
                    self.alive = self.ready = False
                    raise EngineDead("the engine process was killed")
                if position == self.error_after:
                    done = True
                    yield TokenChunk([], finish_reason="error", error="the logits are not finite")
                    return
                yield self._chunk(request, token, position, limit)
                if token == self.eos or token in request.sampling.stop_token_ids or position + 1 == limit:
                    done = True
                    return
            done = True
            yield TokenChunk([], finish_reason="length")
        finally:
            self.running -= 1
            self.finished += done
            self.cancelled += not done

    def _chunk(self, request: EngineRequest, token: int, position: int, limit: int) -> TokenChunk:
        stop = token == self.eos or token in request.sampling.stop_token_ids
        wanted = request.sampling.logprobs
        top = None
        if wanted is not None:
            ids = [token, *range(10, 10 + wanted)][:wanted]
            top = [TopLogprobs(-0.25, ids, [-0.25 - k for k in range(len(ids))])]
        return TokenChunk(
            [token],
            finish_reason="stop" if stop else "length" if position + 1 == limit else None,
            stop_token=token if stop else None,
            cached_tokens=len(request.prompt) // 16 * 16 if position == 0 else None,
            logprobs=top,
        )

    async def stats(self) -> dict[str, float]:
        return {"running_requests": float(self.running), "kv_usage": 0.5}

    async def flush_cache(self) -> None:
        if self.busy_flushes:
            self.busy_flushes -= 1
            raise EngineError("requests run")
        self.flushed += 1

    async def control(self, op: str, *, timeout_s: float = 30.0, **arguments: Any) -> dict[str, Any]:
        self.controls.append((op, arguments))
        if op in ("pause", "resume"):
            self.paused = op == "pause"
        return {"path": "/traces/one"} if "profile" in op else {}

    def abort(self, names: Collection[str] | None = None) -> int:
        self.aborts.append(names)
        return self.running

    @property
    def num_requests(self) -> int:
        return self.running

    @property
    def num_tokens(self) -> int:
        return 3 * self.running

    async def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        self.stopped = True


def says(tokenizer: Tokenizer, text: str, eos: int = 2) -> Script:
    """A script that writes `text` and ends."""
    ids = [*tokenizer.encode(text, add_special_tokens=False), eos]
    return lambda request: ids
