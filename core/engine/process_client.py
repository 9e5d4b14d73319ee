"""EngineClient of an engine in a child process: spawn, messages, death, restart, stop.

The ZeroMQ socket is read straight from the event loop (its file descriptor is a reader), without a task, a
future or a thread per message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import zmq

from core.config.sections import Settings
from core.engine.base_client import DEFAULT_LIVENESS_TIMEOUT_S, BaseClient, State
from core.engine.child import EngineProcess
from core.engine.messages import ErrorInfo, Fatal, FromEngine, Hello, Progress, Shutdown, StartFailed, ToEngine
from core.engine.streams import RequestObserver
from core.engine.wire_errors import restore
from core.interfaces.errors import CoreError, EngineDead

DEFAULT_FACTORY = "core.engine.build:build_from_start"
START_TIMEOUT_S = 1800.0
LEAVE_TIMEOUT_S = 5.0
REAP_TIMEOUT_S = 10.0
MAX_DEATHS, DEATHS_WINDOW_S = 3, 60.0
LAST_WORDS_MS = 100  # for what a process sent before it ended
MAX_MESSAGES_A_TURN = 64
POLLIN = int(zmq.POLLIN)  # arithmetic of enumerations is slow


class ProcessClient(BaseClient):
    """An engine in a child process.

    settings: handed to the child as they are. lock: msgpack of the LockSet that the parent resolved; the child
        verifies it.
    environment: the device's variables, for children that are spawned here (a restart is).
    process: a child that was spawned early for the same factory, and prepared; else `start` spawns one.
    on_fatal: called once, on the event loop, when the engine is gone for good: policy `exit`, a crash loop or a
        failed restart. The server leaves with a non-zero code then.
    on_progress: phase and fraction of start-up.
    start_timeout_s: longest silence while starting.
    """

    def __init__(
        self,
        settings: Settings,
        lock: bytes = b"",
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        factory: str = DEFAULT_FACTORY,
        process: EngineProcess | None = None,
        on_fatal: Callable[[CoreError], None] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        observer: RequestObserver | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        liveness_timeout_s: float = DEFAULT_LIVENESS_TIMEOUT_S,
    ) -> None:
        super().__init__(
            random_seed=settings.engine.random_seed, liveness_timeout_s=liveness_timeout_s, observer=observer,
            wakes_per_s=settings.server.stream_events_per_s,
        )  # fmt: skip
        self._settings = settings
        self._lock = lock
        self._environment = environment
        self._factory = factory
        self._process = process
        self._on_fatal = on_fatal
        self._on_progress = on_progress
        self._start_timeout_s = start_timeout_s
        self._logger = logging.getLogger("core.engine")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hello: asyncio.Future[Hello] | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._restart: asyncio.Task[None] | None = None
        self._reaping: asyncio.Task[None] | None = None
        self.num_restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the child; None without one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> Hello:
        """Start the child and wait until it is ready. Raises the CoreError that stopped it; no process is left
        behind then."""
        self._loop = asyncio.get_running_loop()
        return await self._start_child()

    async def _start_child(self) -> Hello:
        assert self._loop is not None
        self._state = State.STARTING
        process = self._process
        if process is None:
            process = EngineProcess.spawn(self._factory)
            process.prepare(self._environment)
        self._process = process
        self._hello = self._loop.create_future()
        try:
            self._open_socket(process.address)
            process.watch(self._loop, self._child_exited)
            server = self._settings.server
            process.configure(
                self._settings.model_dump_json().encode(), self._lock, self._log_level or server.log_level,
                server.log_format,
            )  # fmt: skip
            self._extend_timeout()
            hello = await self._hello
        except BaseException:
            self._state = State.DEAD
            await self._reap(self._drop_child())
            raise
        finally:
            if self._timeout is not None:
                self._timeout.cancel()
        process.remove_folder()
        self._became_ready(hello)
        return hello

    def _extend_timeout(self) -> None:
        """The child gave a sign of life while starting."""
        assert self._loop is not None
        if self._timeout is not None:
            self._timeout.cancel()
        self._timeout = self._loop.call_later(self._start_timeout_s, self._start_timed_out)

    def _start_timed_out(self) -> None:
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(
                EngineDead(f"the engine gave no sign of life for {self._start_timeout_s:.0f} s while starting")
            )

    # Messages

    def _open_socket(self, address: str) -> None:
        assert self._loop is not None
        if self._context is None:
            self._context = zmq.Context(1)
        socket = self._context.socket(zmq.PAIR)
        # Unlimited queues: a front end that is slow for a moment must not stop the engine, nor the reverse.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        self._socket = socket
        socket.bind(address)
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._readable)

    def _send(self, message: ToEngine) -> None:
        if self._socket is None:
            return
        self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        self._look_again()

    def _look_again(self) -> None:
        """The descriptor only signals changes: whoever uses the socket asks whether something is left to read."""
        if self._has_more():
            assert self._loop is not None
            self._loop.call_soon(self._readable)

    def _has_more(self) -> bool:
        return self._socket is not None and bool(int(self._socket.get(zmq.EVENTS)) & POLLIN)

    def _readable(self) -> None:
        # A bound, so that a fast engine leaves turns to those who read its tokens.
        for _ in range(MAX_MESSAGES_A_TURN):
            if not (self._read_one() and self._has_more()):
                return
        self._look_again()

    def _read_one(self) -> bool:
        if self._socket is None:
            return False
        try:
            raw = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            message: FromEngine = self._decoder.decode(raw)
        except Exception as error:
            self._logger.error("dropped a message of %d bytes that is none of ours: %s", len(raw), error)
            return True
        if isinstance(message, Hello):
            if self._hello is not None and not self._hello.done():
                self._hello.set_result(message)
        elif isinstance(message, Progress):
            self._extend_timeout()
            if self._on_progress is not None:
                self._on_progress(message.phase, message.fraction)
        elif isinstance(message, StartFailed):
            if self._hello is not None and not self._hello.done():
                self._hello.set_exception(restore(message.error, ErrorInfo(message.kind, message.hint)))
        elif isinstance(message, Fatal):
            self._died(EngineDead(f"the engine gave up: {message.error}"))
        else:
            self._handle(message)
        return True

    # Death

    def _child_exited(self) -> None:
        """Called at once when the process is gone, for whatever reason."""
        # Its last words may still be on their way through the socket's own thread.
        while self._read_one() or (self._socket is not None and self._socket.poll(LAST_WORDS_MS)):
            pass
        if self._process is None:  # the last word was that it gives up
            return
        code = self._process.exit_code
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"left with exit code {code}"
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(
                EngineDead(f"the engine process {how} while starting", hint="its log above says why")
            )
        else:
            self._died(EngineDead(f"the engine process {how}"))

    def _died(self, error: EngineDead) -> None:
        if self._state not in (State.READY, State.DRAINING):
            return
        draining = self._state is State.DRAINING
        self._state = State.DEAD
        self._logger.error("%s", error.message)
        process = self._drop_child()
        self._fail_all(error.message)
        assert self._loop is not None
        if draining:
            self._reaping = self._loop.create_task(self._reap(process))
            return
        now_s = time.monotonic()
        self._deaths.append(now_s)
        if self._settings.engine.on_engine_death == "exit":
            self._reaping = self._loop.create_task(self._reap(process))
            self._give_up(error)
        elif len(self._deaths) == MAX_DEATHS and now_s - self._deaths[0] < DEATHS_WINDOW_S:
            self._reaping = self._loop.create_task(self._reap(process))
            self._give_up(EngineDead(f"{MAX_DEATHS} engine deaths within {DEATHS_WINDOW_S:.0f} s: {error.message}"))
        else:
            self._restart = self._loop.create_task(self._restart_child(process), name="engine-restart")

    async def _restart_child(self, process: EngineProcess | None) -> None:
        self._logger.warning("restarting the engine")
        try:
            await self._reap(process)  # before the next one asks for the same memory
            await self._start_child()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._give_up(error if isinstance(error, CoreError) else EngineDead(f"restart failed: {error}"))
        else:
            self.num_restarts += 1
            self._logger.warning("the engine is ready again")

    def _give_up(self, error: CoreError) -> None:
        self._state = State.DEAD
        self._logger.critical("the engine is gone for good: %s", error.message)
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _drop_child(self) -> EngineProcess | None:
        """Close the socket, kill the process and what it started; returns it, to be reaped."""
        assert self._loop is not None
        if self._socket is not None:
            self._loop.remove_reader(self._fd)
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.unwatch(self._loop)
            self._process.kill()
        process, self._process = self._process, None
        return process

    async def _reap(self, process: EngineProcess | None) -> None:
        if process is not None and not await process.wait(REAP_TIMEOUT_S):
            self._logger.error("process %d does not end after SIGKILL", process.pid)

    # Stop

    async def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        """See EngineClient. Idempotent."""
        if self._restart is not None and not self._restart.done():
            self._restart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restart
        try:
            if self._state in (State.READY, State.DRAINING):
                self._state = State.DRAINING
                if drain:
                    await self._drain(timeout_s)
                self._streams.fail_all(lambda: EngineDead("the engine is shutting down"))
                self._send(Shutdown())
                if self._process is not None and self._loop is not None:
                    self._process.unwatch(self._loop)  # its end is no accident from here on
                    await self._process.wait(LEAVE_TIMEOUT_S)
        finally:
            self._state = State.STOPPED
            if self._hello is not None and not self._hello.done():
                self._hello.set_exception(EngineDead("the engine was stopped while starting"))
            self._loop = self._loop or asyncio.get_running_loop()
            await self._reap(self._drop_child())
            if self._reaping is not None:
                await self._reaping
            self._fail_all("the engine is stopped")
            if self._context is not None:
                self._context.term()
                self._context = None
