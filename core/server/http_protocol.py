"""HTTP/1.1 on a connection: uvicorn's protocol over httptools, with a limit on what is no body.

The parser takes lines of any length and any number of header lines, and uvicorn keeps them; h11, which takes over where
httptools is not installed, has such a limit.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10  # of a request's line, headers and trailers


class HeadTooLarge(Exception):
    """Raised within the parser, which turns it into an answer of 400."""


class BoundedHttp(HttpToolsProtocol):
    """A connection. A request whose head is too large is answered 400, and the connection closed."""

    _head_bytes = 0  # of this request
    _num_seen = 0  # parts of requests that the parser has told of
    _unseen_bytes = 0  # that came since, as of a header without an end

    def data_received(self, data: bytes) -> None:
        before = self._num_seen
        super().data_received(data)
        self._unseen_bytes = self._unseen_bytes + len(data) if self._num_seen == before else 0
        if self._unseen_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._num_seen += 1
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

    def _count(self, num_bytes: int) -> None:
        self._num_seen += 1
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge
