"""What a parent hands to its engine process, over the child's standard input."""

from __future__ import annotations

import struct
from typing import BinaryIO, TypeVar

import msgspec

from core.tracing.log_lines import LogFormat

M = TypeVar("M", bound=msgspec.Struct)


class PrepareProcess(msgspec.Struct, frozen=True):
    """What a child needs before it imports anything heavy. environment: variables to set unless they are set."""

    environment: dict[str, str] = {}


class StartEngine(msgspec.Struct, frozen=True):
    """What a child needs. factory: "module:attribute" of `(StartEngine, progress) -> Engine`. settings: JSON of
    Settings. lock: msgpack of the parent's LockSet. address: ZeroMQ address that the parent has bound."""

    factory: str
    address: str
    settings: bytes = b"{}"
    lock: bytes = b""
    log_level: str = "info"
    log_format: LogFormat = "text"


def write_message(pipe: BinaryIO, message: PrepareProcess | StartEngine) -> None:
    """The parent's side of `read_message`: one PrepareProcess, then one StartEngine."""
    raw = msgspec.msgpack.encode(message)
    pipe.write(struct.pack("<Q", len(raw)) + raw)
    pipe.flush()


def read_message(pipe: BinaryIO, kind: type[M]) -> M | None:
    """Read from standard input; None if the parent has gone before it wrote."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    raw = pipe.read(struct.unpack("<Q", head)[0])
    return msgspec.msgpack.decode(raw, type=kind)
