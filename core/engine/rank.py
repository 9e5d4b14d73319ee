"""Main of one of an engine's other ranks: `python -m core.engine.rank SOCKET MEETING PARENT`.

It resolves and loads by itself, goes through the phases of the start when rank 0 does, and then follows its steps, to
the phase in which all leave. The end of its socket means that rank 0 is gone: it leaves at once, in the middle of
whatever it does.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from core.engine.lifetime import EXIT_ORPHANED, die_with_parent
from core.engine.rank_messages import (
    Alive,
    Line,
    LogLevel,
    Phase,
    PhaseDone,
    RankFailed,
    StartRank,
    ToRank,
    read_frame,
)
from core.engine.wire_errors import describe
from core.interfaces.errors import CoreError, EngineError
from core.runner.plan_wire import PlanMessage
from core.tracing.log_lines import LogSink, log_to

if TYPE_CHECKING:
    from core.runner.executor import StepHandle
    from core.runner.following import FollowingRunner

EXIT_FAILED = 3
ALIVE_S = 1.0
PHASES = ("weights", "join", "largest step", "pages", "KV cache", "warm-up", "leave")
# Steps that may be under way before the oldest is waited for. Rank 0 launches at most one ahead, so this waits for
# steps that are done; it is where a fault of the device shows.
MAX_IN_FLIGHT = 4
IDLE_S = 1.0
Answer = tuple[dict[str, int], str]
logger = logging.getLogger("core.engine")


class Rank:
    """One following rank. line: to rank 0."""

    def __init__(self, start: StartRank, line: Line) -> None:
        self._start = start
        self._line = line
        self._alive_s = 0.0
        self._runner: FollowingRunner | None = None
        self._flying: deque[StepHandle] = deque()

    def phase(self, phase: Phase) -> PhaseDone:
        """Do one. Raises whatever goes wrong."""
        values, text = {
            "weights": self._weights,
            "join": self._join,
            "largest step": self._measure,
            "pages": self._pages,
            "KV cache": self._allocate,
            "warm-up": self._warm_up,
            "leave": self._leave,
        }[phase.name](phase.value)
        return PhaseDone(phase.name, values, text)

    def _weights(self, _: int) -> Answer:
        from core.config.sections import Settings
        from core.distributed.torch_group import TorchCommunicator
        from core.engine.make_runner import make_hardware, make_runner
        from core.registry.catalog import Catalog
        from core.registry.lock import LockSet
        from core.registry.resolve import resolve
        from core.runner.following import FollowingRunner

        start = self._start
        settings = self._settings = Settings.model_validate_json(start.settings)
        lock = msgspec.msgpack.decode(start.lock, type=LockSet)
        resolution = self._resolution = resolve(settings, Catalog.scan(), lock)
        hardware = self._hardware = make_hardware(settings, resolution)
        tp = self._tp = TorchCommunicator(hardware.communicator(), start.rank, start.size)
        runner = make_runner(settings, resolution, hardware, tp, kind=FollowingRunner, broadcast=tp.broadcast)
        assert isinstance(runner, FollowingRunner)
        self._runner = runner
        runner.load(lambda done, total: self._still_alive())
        return {}, str(runner.device)

    def _still_alive(self) -> None:
        now_s = time.monotonic()
        if now_s - self._alive_s >= ALIVE_S:
            self._alive_s = now_s
            self._line.send(Alive())

    def _join(self, _: int) -> Answer:
        assert self._runner is not None
        self._tp.join(f"file://{self._start.meeting}", self._runner.device, timeout_s=self._start.timeout_s)
        return {}, ""

    def _measure(self, _: int) -> Answer:
        assert self._runner is not None
        self._runner.measure()
        return {}, ""

    def _pages(self, _: int) -> Answer:
        from core.engine.make_runner import pages_of

        assert self._runner is not None
        return {"pages": pages_of(self._settings, self._resolution, self._hardware, self._runner)}, ""

    def _allocate(self, num_pages: int) -> Answer:
        assert self._runner is not None
        self._runner.allocate(num_pages)
        return {}, ",".join(map(str, self._runner.recorded_sizes))

    def _warm_up(self, _: int) -> Answer:
        assert self._runner is not None
        self._runner.warm_up()
        memory = self._hardware.memory()
        logger.info(
            "ready on %s; %.2f of %.2f GiB of device memory free",
            self._runner.device, memory.free_bytes / 2**30, memory.total_bytes / 2**30,
        )  # fmt: skip
        return {}, ""

    def _leave(self, _: int) -> Answer:
        assert self._runner is not None
        self.rest()
        self._runner.release()
        self._tp.close()
        return {}, ""

    def follow(self, message: PlanMessage) -> None:
        """Launch a step. Raises EngineError if one that was launched before went wrong."""
        assert self._runner is not None
        self._flying.append(self._runner.launch(message.plan()))
        while self._flying and (self._flying[0].done() or len(self._flying) > MAX_IN_FLIGHT):
            self._settle(1)

    def rest(self) -> None:
        """There is nothing to launch: look at what was."""
        self._settle(len(self._flying))

    def _settle(self, count: int) -> None:
        for _ in range(count):
            result = self._flying.popleft().wait()
            if result.error is not None:
                raise EngineError(f"step {result.step} failed: {result.error}")


def _read(stream: BinaryIO, inbox: queue.SimpleQueue[ToRank]) -> None:
    """Body of a thread: messages from rank 0, and its end."""
    try:
        decoder = msgspec.msgpack.Decoder(ToRank)
        while (raw := read_frame(stream)) is not None:
            inbox.put(decoder.decode(raw))
    finally:
        os._exit(EXIT_ORPHANED)


def _work(rank: Rank, line: Line, inbox: queue.SimpleQueue[ToRank]) -> None:
    while True:
        try:
            message = inbox.get(timeout=IDLE_S)
        except queue.Empty:
            rank.rest()
            continue
        match message:
            case PlanMessage():
                rank.follow(message)
            case Phase():
                line.send(rank.phase(message))
            case LogLevel(level=level):
                logging.getLogger().setLevel(level)


def main() -> int:
    """Arguments: number of the socket, of the meeting file (-1: it has none), and the parent's process id."""
    connection, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[3])
    die_with_parent(parent)
    # Ctrl-C and SIGTERM reach rank 0's process, which tells us to leave.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stream = connection.makefile("rb")
    raw = read_frame(stream)
    if raw is None:
        return EXIT_ORPHANED
    start = msgspec.msgpack.decode(raw, type=StartRank)
    sink = LogSink()
    log_to(sink, start.log_format, f"rank {start.rank}")
    logging.getLogger().setLevel(start.log_level)
    inbox: queue.SimpleQueue[ToRank] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(stream, inbox), name="rank-0", daemon=True).start()
    line = Line(connection)
    try:
        _work(Rank(start, line), line, inbox)
    except BaseException as error:
        message, info = describe(error)
        logger.error("this rank gives up: %s", message, exc_info=not isinstance(error, CoreError))
        sink.close()
        line.send(RankFailed(message, info.kind, info.hint))
    return EXIT_FAILED


if __name__ == "__main__":
    code = main()
    # Skips interpreter teardown: device libraries take seconds there.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
