"""EngineClient of an engine in this process, on a thread of its own: for tests and for embedding."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable

from core.engine.base_client import DEFAULT_LIVENESS_TIMEOUT_S, BaseClient, State
from core.engine.engine import Engine
from core.engine.messages import Fatal, FromEngine, Hello, Shutdown, ToEngine
from core.engine.serve import serve
from core.engine.streams import RequestObserver
from core.interfaces.errors import CoreError, EngineDead


class _QueueChannel:
    """A `Channel` between a thread and an event loop. Messages are not encoded: both ends trust each other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_message: Callable[[FromEngine], None]) -> None:
        self._loop = loop
        self._on_message = on_message
        self.to_engine: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages: list[ToEngine] = []
        try:
            if timeout_s > 0:
                messages.append(self.to_engine.get(timeout=timeout_s))
            while True:
                messages.append(self.to_engine.get_nowait())
        except queue.Empty:
            return messages

    def send(self, message: FromEngine) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._on_message, message)


class InlineClient(BaseClient):
    """An engine on a thread. It cannot be restarted: when it gives up, `on_fatal` is called.

    build: makes the engine; it runs on the engine's thread.
    """

    def __init__(
        self,
        build: Callable[[], Engine],
        *,
        on_fatal: Callable[[CoreError], None] | None = None,
        random_seed: int | None = None,
        liveness_timeout_s: float = DEFAULT_LIVENESS_TIMEOUT_S,
        observer: RequestObserver | None = None,
    ) -> None:
        super().__init__(random_seed=random_seed, liveness_timeout_s=liveness_timeout_s, observer=observer)
        self._build = build
        self._on_fatal = on_fatal
        self._channel: _QueueChannel | None = None
        self._thread: threading.Thread | None = None

    async def start(self) -> Hello:
        """Build the engine and wait until it is ready. Raises what the build raised."""
        loop = asyncio.get_running_loop()
        channel = self._channel = _QueueChannel(loop, self._received)
        hello: asyncio.Future[Hello] = loop.create_future()
        self._state = State.STARTING
        self._thread = threading.Thread(target=self._run, args=(channel, loop, hello), name="engine", daemon=True)
        self._thread.start()
        try:
            found = await hello
        except BaseException:
            self._state = State.DEAD
            raise
        self._became_ready(found)
        return found

    def _run(self, channel: _QueueChannel, loop: asyncio.AbstractEventLoop, hello: asyncio.Future[Hello]) -> None:
        def settle(value: Hello | Exception) -> None:
            if hello.done():
                return
            if isinstance(value, Exception):
                hello.set_exception(value)
            else:
                hello.set_result(value)

        try:
            engine = self._build()
        except Exception as error:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, error)
            return
        try:
            loop.call_soon_threadsafe(settle, engine.hello)
            serve(engine, channel)
        finally:
            engine.close()

    def _received(self, message: FromEngine) -> None:
        if not isinstance(message, Fatal):
            self._handle(message)
            return
        self._state = State.DEAD
        error = EngineDead(f"the engine gave up: {message.error}")
        self._fail_all(error.message)
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _send(self, message: ToEngine) -> None:
        if self._channel is not None:
            self._channel.to_engine.put(message)

    async def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        """See EngineClient. Idempotent. A step that is running is waited for: a thread cannot be killed."""
        if self._state is State.READY:
            self._state = State.DRAINING
            if drain:
                await self._drain(timeout_s)
        self._state = State.STOPPED
        self._fail_all("the engine is stopped")
        if self._thread is not None:
            self._send(Shutdown())
            await asyncio.to_thread(self._thread.join)
            self._thread = None
