"""What rank 0 and the other ranks of an engine say to each other: over a socket pair, each a length, then msgpack."""

from __future__ import annotations

import socket
import struct
import threading
from typing import BinaryIO, TypeVar

import msgspec

from core.runner.plan_wire import PlanMessage
from core.tracing.log_lines import LogFormat

_LENGTH = struct.Struct("<Q")
M = TypeVar("M")


class StartRank(msgspec.Struct, tag="start", frozen=True, array_like=True):
    """The first message. settings: JSON of Settings. lock: msgpack of rank 0's LockSet. meeting: the file in which the
    ranks find each other. timeout_s: longest wait for another rank."""

    rank: int
    size: int
    settings: bytes
    lock: bytes
    meeting: str
    timeout_s: float
    log_level: int = 20
    log_format: LogFormat = "text"


class Phase(msgspec.Struct, tag="phase", frozen=True, array_like=True):
    """Do the next part of the start, or of the end: one of `core.engine.rank.PHASES`. Answer PhaseDone.

    value: number of pages."""

    name: str
    value: int = 0


class LogLevel(msgspec.Struct, tag="log_level", frozen=True, array_like=True):
    """Log from this level on."""

    level: str


class PhaseDone(msgspec.Struct, tag="done", frozen=True):
    """values: what rank 0 compares or takes the least of."""

    name: str
    values: dict[str, int] = {}
    text: str = ""


class Alive(msgspec.Struct, tag="alive", frozen=True):
    """The phase goes on."""


class RankFailed(msgspec.Struct, tag="failed", frozen=True):
    """Last words. kind: class name in the CoreError tree."""

    error: str
    kind: str = "EngineError"
    hint: str | None = None


ToRank = StartRank | Phase | LogLevel | PlanMessage
FromRank = PhaseDone | Alive | RankFailed


class Line:
    """One end of a socket pair. Sending is safe from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()

    def send(self, message: ToRank | FromRank) -> None:
        """Raises OSError if the other end is gone, or takes nothing for as long as the socket's timeout."""
        self.send_raw(frame(self._encoder.encode(message)))

    def send_raw(self, framed: bytes) -> None:
        """A message from `frame`."""
        with self._lock:
            self.connection.sendall(framed)

    def close(self) -> None:
        """The other end sees it. Idempotent."""
        self.connection.close()


def frame(encoded: bytes) -> bytes:
    """A message as it goes over a line."""
    return _LENGTH.pack(len(encoded)) + encoded


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next message, still encoded; None at the end of the line."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    raw = stream.read(_LENGTH.unpack(head)[0])
    return raw if len(raw) == _LENGTH.unpack(head)[0] else None


class Frames:
    """Cuts what comes from a line that must not be waited for into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete with `data`."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return found
