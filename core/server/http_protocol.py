"""HTTP/1.1 on a connection: uvicorn's protocol over httptools, with limits on what is no body, and on time.

The parser takes lines of any length and any number of header lines, and uvicorn keeps them; h11, which takes over where
httptools is not installed, has such a limit. Neither minds how long a request takes to come, so that a client who sends
a byte now and then, or nothing at all, would hold its connection for ever.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10  # of a request's line, headers and trailers
READ_S = 60.0  # for a request to come, from the connection or from its first byte on, and
MIN_BYTES_PER_S = 1024  # a second more for each of these
SEND_S = 300.0  # that a client may take nothing of an answer that waits for it
LOOK_S = 15.0  # between two looks at a connection
TOO_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 26\r\n"
    b"connection: close\r\n\r\nThe request came too late."
)


class HeadTooLarge(Exception):
    """Raised within the parser, which turns it into an answer of 400."""


class BoundedHttp(HttpToolsProtocol):
    """A connection. A request whose head is too large is answered 400, one that comes too slowly 408; both close it.
    So does a client that does not take its answer."""

    _head_bytes = 0  # of this request
    _num_seen = 0  # parts of requests that the parser has told of
    _unseen_bytes = 0  # that came since, as of a header without an end

    _since_s: float | None = None  # when what is awaited began to come; None: nothing is awaited
    _num_bytes = 0  # that came since
    _part_bytes = 0  # of what is being parsed
    _look: asyncio.TimerHandle | None = None
    _unsent_bytes = 0  # that waited for the client at the last look
    _stuck_s = 0.0  # as long it has taken none of them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._look = self.loop.call_later(LOOK_S, self._look_at_time)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_at_time(self) -> None:
        """End the connection if its request is late, or its client reads nothing. A request whose body the route does
        not read yet is not late."""
        self._look = self.loop.call_later(LOOK_S, self._look_at_time)
        before, self._unsent_bytes = self._unsent_bytes, self.transport.get_write_buffer_size()
        self._stuck_s = self._stuck_s + LOOK_S if self._unsent_bytes == before > 0 else 0.0
        if self._stuck_s > SEND_S:
            self.transport.abort()
        if self._since_s is None or self.flow.read_paused or self.transport.is_closing():
            return
        if self.loop.time() - self._since_s <= READ_S + self._num_bytes / MIN_BYTES_PER_S:
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(TOO_LATE)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._part_bytes = len(data)
        self._num_bytes += len(data)
        before = self._num_seen
        super().data_received(data)
        if self._num_seen != before:
            self._unseen_bytes = 0
        else:
            self._unseen_bytes += len(data)
            if self._since_s is None:  # empty lines before a request
                self._since_s, self._num_bytes = self.loop.time(), 0
        if self._unseen_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        self._head_bytes, self._num_bytes = 0, self._part_bytes
        self._num_seen += 1
        self._since_s = self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._num_seen += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since_s = None
        super().on_message_complete()

    def _count(self, num_bytes: int) -> None:
        self._num_seen += 1
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge
