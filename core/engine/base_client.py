"""What every EngineClient does: ids, seeds, streams, control calls, liveness. How messages travel is the subclass's."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Collection
from enum import StrEnum
from functools import lru_cache, partial
from typing import Any

import numpy as np

from core.engine.client import EngineRequest, TokenChunk
from core.engine.messages import (
    AddRequest,
    CancelRequest,
    Control,
    ControlDone,
    FromEngine,
    Heartbeat,
    Hello,
    Stats,
    StepOutputs,
    ToEngine,
)
from core.engine.streams import RequestObserver, Stream, StreamTable
from core.engine.wire_errors import restore
from core.interfaces.errors import EngineDead, EngineError
from core.interfaces.prefix_cache import Namespace

DEFAULT_LIVENESS_TIMEOUT_S = 300.0
CONTROL_TIMEOUT_S = 30.0


_encoded = lru_cache(1024)(Namespace.encode)  # of a server there are as many as tenants and salts in use


class State(StrEnum):
    """Of a client. Requests are accepted in READY only."""

    NEW = "not started"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "shutting down"
    DEAD = "dead"
    STOPPED = "stopped"


class BaseClient:
    """Shared half of the clients. Lives on one event loop.

    random_seed: of the seeds drawn for requests that give none; None draws from the operating system.
    liveness_timeout_s: `alive` is False when there is work and no step has ended for so long. wakes_per_s: see
    StreamTable.
    """

    def __init__(
        self,
        *,
        random_seed: int | None = None,
        liveness_timeout_s: float = DEFAULT_LIVENESS_TIMEOUT_S,
        observer: RequestObserver | None = None,
        wakes_per_s: float = 0.0,
    ) -> None:
        self.hello: Hello | None = None
        self._state = State.NEW
        self._random = random.Random(random_seed) if random_seed is not None else random.SystemRandom()
        self._liveness_timeout_s = liveness_timeout_s
        self._streams = StreamTable(self._cancel, observer, wakes_per_s=wakes_per_s)
        self._stats: dict[str, float] = {}
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._log_level: str | None = None
        self._call_ids = itertools.count(1)
        self._last_progress_s = time.monotonic()
        self._last_steps = 0
        self._eos: frozenset[int] = frozenset()
        self._idle = asyncio.Event()
        self.paused = False

    # For subclasses

    def _send(self, message: ToEngine) -> None:
        """Hand a message to the engine; never blocks."""
        raise NotImplementedError

    def _handle(self, message: FromEngine) -> None:
        """Take a message of a running engine."""
        if isinstance(message, StepOutputs):
            self._last_progress_s = time.monotonic()
            self._streams.feed(message)
            if not self._streams:
                self._idle.set()
        elif isinstance(message, Heartbeat):
            if message.steps != self._last_steps or not message.busy:
                self._last_progress_s = time.monotonic()
                self._last_steps = message.steps
        elif isinstance(message, Stats):
            self._stats = message.values
        elif isinstance(message, ControlDone):
            call = self._calls.pop(message.call, None)
            if call is not None and not call.done():
                if message.error_info is None:
                    call.set_result(message.values)
                else:
                    call.set_exception(restore(message.error, message.error_info))

    def _became_ready(self, hello: Hello) -> None:
        self.hello = hello
        self._eos = frozenset(hello.eos_token_ids)
        self._last_progress_s = time.monotonic()
        self._last_steps = 0
        self.paused = False
        self._state = State.READY

    def _fail_all(self, message: str, hint: str | None = None) -> None:
        self._streams.fail_all(lambda: EngineDead(message, hint=hint))
        self._idle.set()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(EngineDead(message, hint=hint))

    async def _drain(self, timeout_s: float) -> None:
        """Wait until no request runs, up to the timeout."""
        self._idle.clear()
        if self._streams:
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                return

    # EngineClient

    def generate(self, request: EngineRequest) -> AsyncGenerator[TokenChunk, None]:
        """See EngineClient. Nothing is sent before the first chunk is asked for."""
        return self._streams.read(partial(self._begin, request))

    def _begin(self, request: EngineRequest) -> tuple[Stream, frozenset[int]]:
        """Send the request; its stream and the ids that end its text."""
        if self._state is not State.READY:
            raise EngineDead(f"the engine is {self._state}", hint="retry when /ready says yes")
        sampling = request.sampling
        seed = request.seed if request.seed is not None else sampling.seed
        if seed is None:
            seed = self._random.getrandbits(63)
        stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= self._eos
        stream = self._streams.open(request)
        self._send(
            AddRequest(
                id=stream.id,
                token_ids=np.ascontiguousarray(request.prompt, np.dtype("<i4")).tobytes(),
                sampling=sampling,
                seed=seed,
                namespace=_encoded(request.namespace),
                priority=request.priority,
                tenant=request.tenant,
                weight=request.weight,
                timeout_s=request.timeout_s,
                pooling=request.pooling,
                arrival_s=stream.arrival_s,
                label=stream.record.id if stream.record is not None else "",
            )
        )
        return stream, stop_ids

    def _cancel(self, request_id: int) -> None:
        if self._state in (State.READY, State.DRAINING):
            self._send(CancelRequest(request_id))
        if not self._streams:
            self._idle.set()

    async def stats(self) -> dict[str, float]:
        """Latest metric values, at most about a second old."""
        return dict(self._stats)

    async def control(self, op: str, *, timeout_s: float = CONTROL_TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
        """See EngineClient."""
        if self._state is not State.READY and not (self._state is State.DRAINING and op == "resume"):
            raise EngineDead(f"the engine is {self._state}", hint="retry when /ready says yes")
        call = next(self._call_ids)
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[call] = done
        self._send(Control(call, op, arguments))
        try:
            values = await asyncio.wait_for(done, timeout_s)
        except TimeoutError:
            raise EngineError(f"the engine did not answer within {timeout_s:g} s") from None
        finally:
            self._calls.pop(call, None)
        if op in ("pause", "resume"):
            self.paused = op == "pause"
        elif op == "set_log_level":
            self._log_level = str(arguments["level"])
        return values

    async def flush_cache(self) -> None:
        """Forget cached prefixes. Raises EngineError while requests run, EngineDead if there is no engine."""
        await self.control("flush_cache")

    def abort(self, names: Collection[str] | None = None) -> int:
        """See EngineClient."""
        return self._streams.abort(names)

    @property
    def num_requests(self) -> int:
        """Requests that have not finished."""
        return len(self._streams)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers of those requests."""
        return self._streams.num_tokens

    @property
    def state(self) -> State:
        return self._state

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._state is State.READY

    @property
    def alive(self) -> bool:
        """Liveness: the engine is there, its loop turns and, while there is work, steps progress. A (re)start, which
        has its own timeout, counts as alive."""
        if self._state is State.STARTING:
            return True
        if self._state not in (State.READY, State.DRAINING):
            return False
        return time.monotonic() - self._last_progress_s < self._liveness_timeout_s
