"""HTTP without a socket: transports that hand requests of an httpx client to an ASGI application, and really stream.

httpx's own ASGITransport collects the whole body before it answers; here each piece arrives as the application sends
it, the application waits while nobody reads, and closing a response tells it that the client is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx

LEAVE_TIMEOUT_S = 10.0


class Exchange:
    """One request and its response. Belongs to one event loop."""

    def __init__(self, app: Any, scope: Mapping[str, Any], body: bytes) -> None:
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(1)
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self._running = asyncio.ensure_future(self._run(app, dict(scope)))
        self._complete = False

    async def _run(self, app: Any, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            if not self._gone.is_set():
                await self._messages.put(None)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if not self._gone.is_set():  # as a server does: what nobody can get any more is dropped
            await self._messages.put(message)

    async def begin(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """(status, headers). Raises what the application raised instead of an answer."""
        message = await self._messages.get()
        if message is None:
            self._complete = True
            await self._running
            raise RuntimeError("the application ended without an answer")
        return message["status"], list(message["headers"])

    async def piece(self) -> bytes | None:
        """The next piece of the body; None at its end. Raises httpx.RemoteProtocolError if it breaks off."""
        while not self._complete:
            message = await self._messages.get()
            if message is None:
                self._complete = True
                raise httpx.RemoteProtocolError("the application ended within its answer")
            self._complete = not message.get("more_body", False)
            if message.get("body"):
                return bytes(message["body"])
        return None

    async def close(self) -> None:
        """The client goes. Waits for the application, which is cancelled if it does not end."""
        self._gone.set()
        with contextlib.suppress(asyncio.QueueEmpty):
            self._messages.get_nowait()  # lets a `send` go on that waits for a reader
        await asyncio.wait({self._running}, timeout=LEAVE_TIMEOUT_S)
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


def scope_of(request: Any) -> dict[str, Any]:
    """The ASGI scope of a request of httpx."""
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.split(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 50000),
        "server": (url.host, url.port or 80),
    }


def async_transport(app: Any, library: Any = httpx) -> Any:
    """A transport for `library.AsyncClient`. library: httpx, or a package of the same shape."""

    class Stream(library.AsyncByteStream):
        def __init__(self, exchange: Exchange) -> None:
            self._exchange = exchange

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while (piece := await self._exchange.piece()) is not None:
                yield piece

        async def aclose(self) -> None:
            await self._exchange.close()

    class Transport(library.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any:
            exchange = Exchange(app, scope_of(request), await request.aread())
            try:
                status, headers = await exchange.begin()
            except BaseException:
                await exchange.close()
                raise
            return library.Response(status, headers=headers, stream=Stream(exchange), request=request)

    return Transport()


def sync_transport(app: Any, portal: Any, library: Any = httpx) -> Any:
    """A transport for `library.Client`. portal: an anyio BlockingPortal into the application's event loop."""

    class Stream(library.SyncByteStream):
        def __init__(self, exchange: Exchange) -> None:
            self._exchange = exchange

        def __iter__(self) -> Iterator[bytes]:
            while (piece := portal.call(self._exchange.piece)) is not None:
                yield piece

        def close(self) -> None:
            portal.call(self._exchange.close)

    class Transport(library.BaseTransport):
        def handle_request(self, request: Any) -> Any:
            exchange, status, headers = portal.call(_begin, app, scope_of(request), request.read())
            return library.Response(status, headers=headers, stream=Stream(exchange), request=request)

    return Transport()


async def _begin(app: Any, scope: Mapping[str, Any], body: bytes) -> tuple[Exchange, int, list[tuple[bytes, bytes]]]:
    exchange = Exchange(app, scope, body)
    try:
        return exchange, *await exchange.begin()
    except BaseException:
        await exchange.close()
        raise
