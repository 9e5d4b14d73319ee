"""What a parent hands to its engine process, over the child's standard input."""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec


class StartEngine(msgspec.Struct, frozen=True):
    """What a child needs. factory: "module:attribute" of `(StartEngine, progress) -> Engine`. settings: JSON of
    Settings. lock: msgpack of the parent's LockSet. address: ZeroMQ address that the parent has bound."""

    factory: str
    address: str
    settings: bytes = b"{}"
    lock: bytes = b""
    log_level: str = "info"


def write_start(pipe: BinaryIO, start: StartEngine) -> None:
    """The parent's side of `read_start`."""
    raw = msgspec.msgpack.encode(start)
    pipe.write(struct.pack("<Q", len(raw)) + raw)
    pipe.flush()


def read_start(pipe: BinaryIO) -> StartEngine | None:
    """Read from standard input; None if the parent has gone before it wrote."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    raw = pipe.read(struct.unpack("<Q", head)[0])
    return msgspec.msgpack.decode(raw, type=StartEngine)
