"""The other ranks of an engine, as rank 0 sees them: processes that are started, told, heard, watched and ended."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from core.distributed.meeting import Meeting
from core.engine.messages import ErrorInfo
from core.engine.rank_messages import (
    Frames,
    FromRank,
    Line,
    LogLevel,
    Phase,
    PhaseDone,
    RankFailed,
    StartRank,
    frame,
)
from core.engine.spinning import spin_briefly
from core.engine.wire_errors import restore
from core.interfaces.errors import CoreError, EngineDead, EngineError
from core.interfaces.step import StepPlan
from core.runner.plan_wire import PlanMessage

EXIT_STUCK = 6
TIMEOUT_S = 600.0  # longest silence of a rank while starting, and wait for another in a collective
SEND_TIMEOUT_S = 30.0
LEAVE_TIMEOUT_S = 5.0
TELL_TIMEOUT_S = 3.0  # between a collective that breaks and the news of why
STUCK_S = 15.0
POLL_S = 0.2
_RECEIVE_BYTES = 1 << 16
logger = logging.getLogger("core.engine")


@dataclass(slots=True)
class _Member:
    """One rank: its process, this end of its line, and when it last gave a sign of life."""

    number: int
    line: Line
    process: subprocess.Popen[bytes] | None = None
    heard_s: float = 0.0
    frames: Frames = field(default_factory=Frames)
    done: dict[str, PhaseDone] = field(default_factory=dict)


@dataclass(slots=True)
class PhaseResult:
    """What the other ranks answered, once the phase is over."""

    answers: list[PhaseDone] = field(default_factory=list)


class Ranks:
    """Ranks 1 .. size - 1. Everything but `lost` and the watch is called from the engine's thread.

    A thread of its own starts and watches them: Linux ends a child with the thread that started it, and this one lives
    as long as they are wanted. When one fails or dies, collectives that wait for it are ended (`on_loss`), and whoever
    asks next gets the reason.

    size: of the whole group. settings, lock: as in StartRank. on_loss: called once, from the watching thread.
    leave_if_stuck: leave this process if its engine does not notice a loss within STUCK_S, because its device waits for
    ever; for a process that is the engine's own. timeout_s: longest silence. module: what their processes run.
    """

    def __init__(
        self,
        size: int,
        settings: bytes,
        lock: bytes,
        *,
        log_format: str = "text",
        on_loss: Callable[[], None] = lambda: None,
        leave_if_stuck: bool = False,
        timeout_s: float = TIMEOUT_S,
        module: str = "core.engine.rank",
    ) -> None:
        self.size = size
        self._module = module
        self.timeout_s = timeout_s
        self.meeting = Meeting.make()
        self._on_loss = on_loss
        self._leave_if_stuck = leave_if_stuck
        self._changed = threading.Condition()
        self._lost: CoreError | None = None
        self._noticed = threading.Event()
        self._closing = threading.Event()
        self._phase = ""
        self._collective = True
        self._encoder = msgspec.msgpack.Encoder()
        self._members: list[_Member] = []
        ends: list[socket.socket] = []
        for number in range(1, size):
            mine, theirs = socket.socketpair()
            mine.settimeout(SEND_TIMEOUT_S)
            self._members.append(_Member(number, Line(mine), heard_s=time.monotonic()))
            ends.append(theirs)
        self._thread = threading.Thread(target=self._watch, args=(ends,), name="core-ranks", daemon=True)
        self._finish = weakref.finalize(self, _end, self._closing, self._members)
        self._thread.start()
        level = logging.getLogger("core.engine").getEffectiveLevel()
        for member in self._members:
            start = StartRank(
                member.number, size, settings, lock, self.meeting.path, timeout_s, level,
                "json" if log_format == "json" else "text",
            )  # fmt: skip
            with contextlib.suppress(OSError):
                member.line.send(start)

    # Start

    @contextmanager
    def phase(self, name: str, value: int = 0, *, together: bool = False) -> Iterator[PhaseResult]:
        """Have the other ranks do a phase while the body does rank 0's part; the result is filled at the end.

        together: ranks wait for each other in it, so an error of the body is most likely not its own. Raises the error
        of the first rank that fails, naming it; EngineError for one that gives no sign of life.
        """
        result = PhaseResult()
        now_s = time.monotonic()
        with self._changed:
            self._phase, self._collective = name, together
            for member in self._members:
                member.heard_s = now_s
        self._tell(self._encoder.encode(Phase(name, value)))
        try:
            yield result
        except Exception as error:
            if together and (lost := self._reason(TELL_TIMEOUT_S)) is not None:
                raise lost from error
            raise
        with self._changed:
            self._changed.wait_for(lambda: self._lost is not None or not self._silent(name))
            self._phase, self._collective = "", True
        if self._lost is not None:
            self._noticed.set()
            raise self._lost
        result.answers = [member.done[name] for member in self._members]

    def _silent(self, phase: str) -> list[_Member]:
        return [member for member in self._members if phase not in member.done]

    # Steps

    def launch(self, plan: StepPlan) -> None:
        """Send a plan. Raises EngineDead if a rank is gone."""
        self.check()
        self._tell(self._encoder.encode(PlanMessage.of(plan)))

    def leave(self) -> None:
        """Have them leave their group, which takes rank 0 too."""
        with contextlib.suppress(EngineDead):
            self._tell(self._encoder.encode(Phase("leave")))

    def _tell(self, encoded: bytes) -> None:
        framed = frame(encoded)
        for member in self._members:
            try:
                member.line.send_raw(framed)
            except OSError as error:
                if self._reason(TELL_TIMEOUT_S) is None:  # it has not ended
                    self._lose(EngineDead(f"rank {member.number} cannot be reached: {error or type(error).__name__}"))
                raise self.dead("") from error

    def set_log_level(self, level: str) -> None:
        """For the logs of all of them."""
        self._tell(self._encoder.encode(LogLevel(level.upper())))

    def check(self) -> None:
        """Raises EngineDead if a rank is lost."""
        if self._lost is not None:
            raise self.dead("")

    def dead(self, own: str) -> EngineDead:
        """Why steps cannot go on: the loss of a rank if there is one, or comes in a moment, else `own`, an error of
        rank 0: it has left the others in the middle of a step."""
        self._noticed.set()
        lost = self._reason(TELL_TIMEOUT_S if own else 0.0)
        if lost is not None:
            return EngineDead(lost.message, hint=lost.hint)
        return EngineDead(f"rank 0 failed: {own}")

    @property
    def lost(self) -> CoreError | None:
        """Why a rank is gone; None while all are there."""
        return self._lost

    def _reason(self, timeout_s: float) -> CoreError | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lost is not None, timeout_s)
        if self._lost is not None:
            self._noticed.set()
        return self._lost

    # The watching thread

    def _watch(self, ends: list[socket.socket]) -> None:
        try:
            self._spawn(ends)
            self._listen()
        except Exception as error:
            self._lose(EngineError(f"the other ranks could not be started: {type(error).__name__}: {error}"))
        self._closing.wait()  # children end with the thread that started them

    def _spawn(self, ends: list[socket.socket]) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        spin_briefly(environment)
        meeting = [self.meeting.fd] if self.meeting.fd >= 0 else []
        for member, end in zip(self._members, ends, strict=True):
            command = [sys.executable, "-P", "-m", self._module]
            command += [str(end.fileno()), str(self.meeting.fd), str(os.getpid())]
            member.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[end.fileno(), *meeting], env=environment
            )
            end.close()

    def _listen(self) -> None:
        decoder = msgspec.msgpack.Decoder(FromRank)
        with selectors.DefaultSelector() as selector:
            for member in self._members:
                selector.register(member.line.connection, selectors.EVENT_READ, member)
            while not self._closing.is_set():
                for key, _ in selector.select(POLL_S):
                    member = key.data
                    try:
                        data = member.line.connection.recv(_RECEIVE_BYTES)
                    except OSError:
                        data = b""
                    for raw in member.frames.feed(data):
                        self._heard(member, decoder.decode(raw))
                    if not data:
                        selector.unregister(member.line.connection)
                        self._gone(member)
                self._look_for_silence()

    def _heard(self, member: _Member, message: FromRank) -> None:
        if isinstance(message, RankFailed):
            self._lose(restore(f"rank {member.number}: {message.error}", ErrorInfo(message.kind, message.hint)))
            return
        with self._changed:
            member.heard_s = time.monotonic()
            if isinstance(message, PhaseDone):
                member.done[message.name] = message
                self._changed.notify_all()

    def _gone(self, member: _Member) -> None:
        """Its line has ended."""
        if self._closing.is_set() or member.process is None:
            return
        try:
            code = member.process.wait(TELL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            how = "does not answer any more"
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        where = f" in phase {self._phase!r} of the start" if self._phase else ""
        self._lose(
            EngineDead(f"rank {member.number} (process {member.process.pid}) {how}{where}", hint="see its log lines")
        )

    def _look_for_silence(self) -> None:
        with self._changed:
            limit_s = time.monotonic() - self.timeout_s
            quiet = [member for member in self._silent(self._phase) if member.heard_s < limit_s] if self._phase else []
            phase = self._phase
        if quiet:
            names = ", ".join(str(member.number) for member in quiet)
            one = len(quiet) == 1
            self._lose(
                EngineError(
                    f"rank{'' if one else 's'} {names} gave no sign of life for {self.timeout_s:.0f} s in phase "
                    f"{phase!r} of the start",
                    hint="see the log lines of that rank; is its device free, and can the devices reach each other?",
                )
            )

    def _lose(self, why: CoreError) -> None:
        with self._changed:
            if self._lost is not None or self._closing.is_set():
                return
            self._lost = why
            self._changed.notify_all()
        logger.error("%s", why.message)
        # In a thread: libraries free what is waiting first, and may then wait themselves.
        threading.Thread(target=self._end_collectives, name="core-ranks-abort", daemon=True).start()
        if self._leave_if_stuck:
            threading.Thread(target=self._leave_stuck, name="core-ranks-stuck", daemon=True).start()

    def _end_collectives(self) -> None:
        try:
            self._on_loss()
        except Exception as error:
            logger.warning("collectives could not be ended: %s", error)

    def _leave_stuck(self) -> None:
        """A device that waits for a rank that is gone may hold the engine's thread for ever. Where rank 0 waits for
        nobody, as while it loads, it is not stuck but busy."""
        since_s = time.monotonic()
        while not self._noticed.wait(POLL_S) and not self._closing.is_set():
            if not self._collective:
                since_s = time.monotonic()
            elif time.monotonic() - since_s > STUCK_S:
                logger.critical("the engine does not come back from its step: this process leaves")
                time.sleep(POLL_S)  # the log is written by a thread
                os._exit(EXIT_STUCK)

    # End

    def close(self) -> None:
        """End all of them, whatever they do. Idempotent."""
        self._finish()
        self.meeting.close()
        if self._thread is not threading.current_thread():
            self._thread.join(LEAVE_TIMEOUT_S)


def _end(closing: threading.Event, members: list[_Member]) -> None:
    """They leave when their lines end; those that do not are killed."""
    closing.set()
    for member in members:
        with contextlib.suppress(OSError):
            member.line.connection.shutdown(socket.SHUT_RDWR)
        member.line.close()
    deadline_s = time.monotonic() + LEAVE_TIMEOUT_S
    for member in members:
        if member.process is None:
            continue
        try:
            member.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.process.send_signal(signal.SIGKILL)
            member.process.wait()
