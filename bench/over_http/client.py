"""The load on a server, from a process of its own: plain sockets, one thread, next to no work per event.

What comes is kept as it came, with its time, and read when the clock has stopped: a client that parses while it
measures takes processor time from the server, and on a machine with few cores it is the client that is measured then.

Prints `BEGIN` when the warm-up is over, and `RESULT` with the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from bench.over_http.rounds import measure
from core.bench.datasets import Conversation
from core.bench.report import RequestRecord

END = b"0\r\n\r\n"  # of a chunked body
LIMIT_S = 600.0  # of one round
MANY = 8  # streams


@dataclass(slots=True)
class _Exchange:
    """One request and what came back: pieces as they were read, and when, in seconds since the round began."""

    request: bytes
    start_s: float = 0.0
    pieces: list[bytes] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)


class Client:
    """Connections to one server that stay open from round to round. model: its name in requests."""

    def __init__(self, host: str, port: int, model: str) -> None:
        self._address = (host, port)
        self._model = model
        self._open: list[socket.socket] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._open:
            connection.close()

    def run(self, conversations: Sequence[Conversation]) -> tuple[list[RequestRecord], float]:
        """All requests at once, streamed, greedy, end-of-text ignored: one record each, and the wall time in seconds.

        Raises OSError, or TimeoutError if a round takes ten minutes.
        """
        exchanges = [_Exchange(self._request(conversation)) for conversation in conversations]
        while len(self._open) < len(exchanges):
            connection = socket.create_connection(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(connection)
        with selectors.DefaultSelector() as selector:
            for connection, exchange in zip(self._open, exchanges, strict=False):
                selector.register(connection, selectors.EVENT_READ, exchange)
            wall_s = self._exchange(selector, len(exchanges))
        return [record_of(e.start_s, e.pieces, e.times_s) for e in exchanges], wall_s

    def _exchange(self, selector: selectors.BaseSelector, running: int) -> float:
        begin, clock = time.perf_counter(), time.perf_counter
        for key in list(selector.get_map().values()):
            key.data.start_s = clock() - begin
            key.fileobj.sendall(key.data.request)  # type: ignore[union-attr]
        while running:
            ready = selector.select(LIMIT_S)
            if not ready:
                raise TimeoutError(f"{running} streams have given nothing for {LIMIT_S:g} s")
            for key, _ in ready:
                piece: bytes = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                key.data.pieces.append(piece)
                key.data.times_s.append(clock() - begin)
                if piece.endswith(END) or not piece:
                    selector.unregister(key.fileobj)
                    running -= 1
        return clock() - begin

    def _request(self, conversation: Conversation) -> bytes:
        body = json.dumps(
            {
                "model": self._model, "prompt": conversation.token_ids, "max_tokens": conversation.output_len,
                "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            }
        ).encode()  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._address[0]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def record_of(start_s: float, pieces: Sequence[bytes], times_s: Sequence[float]) -> RequestRecord:
    """The record of one exchange. pieces: as they were read from the connection; times_s: of each."""
    record = RequestRecord(start_s)
    last_s = start_s
    try:
        for at_s, event in _events(pieces, times_s):
            if "error" in event:
                raise ValueError(str(event["error"]))
            if event.get("choices"):
                if record.first_token_s != record.first_token_s:  # NaN: nothing has come yet
                    record.first_token_s = at_s
                elif at_s != last_s:
                    record.gaps_s.append(at_s - last_s)
                last_s = at_s
            if usage := event.get("usage"):
                record.prompt_tokens, record.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        record.end_s = times_s[-1] if times_s else start_s
    except ValueError as error:
        record.error = str(error) or "the connection was closed"
    return record


def _events(pieces: Sequence[bytes], times_s: Sequence[float]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Each event of a streamed reply, with the time at which its last byte came. Raises ValueError."""
    raw = b"".join(pieces)
    head, _, rest = raw.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.[01] 200 ", head):
        raise ValueError(raw[:400].decode(errors="replace"))
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    at, number, text = len(head) + 4, 0, b""
    while rest:
        size, _, behind = rest.partition(b"\r\n")
        length = int(size, 16)
        text += behind[:length]
        at += len(size) + 2 + length + 2
        rest = behind[length + 2 :]
        while number < len(ends) - 1 and ends[number] < at - 2:
            number += 1
        *whole, text = text.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                yield times_s[number], json.loads(event[6:])


def stand_back() -> None:
    """Interrupt nobody: what has come is read when a processor is free, not with every event of 64 streams. A client
    is elsewhere, as a rule, and takes no processor from engine and server. Where streams are few it is at once."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--input-len", type=int, required=True)
    parser.add_argument("--output-len", type=int, required=True)
    parser.add_argument("--turn", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, required=True)
    args = parser.parse_args()
    if args.streams > MANY:
        stand_back()
    with Client("127.0.0.1", args.port, args.model) as client:
        found = measure(
            client.run, args.streams, args.input_len, args.output_len, args.seconds, args.turn,
            args.pause_ms / 1e3, begun=lambda: print("BEGIN", flush=True),
        )  # fmt: skip
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
