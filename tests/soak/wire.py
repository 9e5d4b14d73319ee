"""HTTP/1.1 by hand: one request per connection, so that a client can misbehave exactly as wanted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import dataclass, field
from enum import StrEnum

ABORTED = 0  # in place of a status: the client left before there was one
CHUNK_BYTES = 65536


class Manner(StrEnum):
    """How a client behaves. LEAVES: goes after some bytes of the answer. HANGS_UP: goes as soon as the request is sent.
    HALF: sends half of its body and goes. SLOW: reads a little at a time through a small buffer."""

    WHOLE = "whole"
    SLOW = "slow"
    LEAVES = "leaves"
    HANGS_UP = "hangs up"
    HALF = "half a body"


GOES_AWAY = frozenset({Manner.LEAVES, Manner.HANGS_UP, Manner.HALF})


@dataclass
class Answer:
    """What came back. status: ABORTED without one. complete: the body ended as its headers said it would."""

    status: int = ABORTED
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


async def ask(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    manner: Manner = Manner.WHOLE,
    rng: random.Random | None = None,
) -> Answer:
    """Send one request to 127.0.0.1 and read the answer as `manner` says. Raises OSError if nobody listens."""
    rng = rng or random.Random(0)
    sock = socket.socket()
    sock.setblocking(False)
    if manner is Manner.SLOW:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
    except BaseException:
        sock.close()
        raise
    try:
        return await _talk(reader, writer, _head(method, path, body, headers or {}), body, manner, rng)
    finally:
        if manner in GOES_AWAY:
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _head(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", f"content-length: {len(body)}"]
    if body:
        lines.append("content-type: application/json")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    head: bytes,
    body: bytes,
    manner: Manner,
    rng: random.Random,
) -> Answer:
    answer = Answer()
    # A server may refuse a body before it has read all of it; what it says still counts.
    with contextlib.suppress(ConnectionError):
        writer.write(head + (body[: len(body) // 2] if manner is Manner.HALF else body))
        await writer.drain()
    if manner in (Manner.HALF, Manner.HANGS_UP):
        await asyncio.sleep(rng.choice((0.0, 0.005, 0.05)))
        return answer
    raw = bytearray()
    patience = rng.randrange(1, 4000) if manner is Manner.LEAVES else None
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(256 if manner is Manner.SLOW else CHUNK_BYTES):
            raw += part
            if patience is not None and len(raw) >= patience:
                break
            if manner is Manner.SLOW and len(raw) < 4096:  # then it has had enough of waiting
                await asyncio.sleep(0.01)
    _read(bytes(raw), answer)
    return answer


def _read(raw: bytes, answer: Answer) -> None:
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        return
    first, *lines = head.decode("latin-1").split("\r\n")
    answer.status = int(first.split(" ")[1])
    for line in lines:
        name, _, value = line.partition(":")
        answer.headers[name.lower()] = value.strip()
    if answer.headers.get("transfer-encoding") == "chunked":
        answer.body, answer.complete = _unchunked(rest)
    else:
        answer.body, answer.complete = rest, len(rest) == int(answer.headers.get("content-length", "-1"))


def _unchunked(raw: bytes) -> tuple[bytes, bool]:
    """The body, and whether the last chunk is there."""
    parts: list[bytes] = []
    while True:
        size, separator, raw = raw.partition(b"\r\n")
        if not separator:
            return b"".join(parts), False
        length = int(size, 16)
        if length == 0:
            return b"".join(parts), True
        parts.append(raw[:length])
        raw = raw[length + 2 :]
