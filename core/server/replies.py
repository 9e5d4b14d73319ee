"""Replies: JSON, and event streams that end with their client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.interfaces.errors import CoreError
from core.server import errors

T = TypeVar("T")
log = logging.getLogger("core.server")
_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
# In a request's scope: sends the parts of a body past the layers that only look at a response's start.
BODY_SEND = "core.send_body"
_MARK = "\ue000core\ue001"  # stands for the text while a template is made


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(_encode(value), status, headers=dict(headers or {}), media_type="application/json")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"


class TextEvent:
    """Events that differ in one text only: the rest of them is encoded once.

    make: the event for a text. Nothing else in the event may depend on the text, nothing after it be a client's.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._before, _, self._after = event(make(_MARK)).rpartition(_encode(_MARK))

    def of(self, text: str) -> bytes:
        """The event for `text`."""
        return self._before + _encode(text) + self._after


def named_event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event under the name of its `type`."""
    return b"event: " + value["type"].encode() + b"\ndata: " + _encode(value) + b"\n\n"


def line(value: Any) -> bytes:
    """One line of a stream of JSON values."""
    return bytes(_encode(value)) + b"\n"


@cache
def _stream_headers(media_type: str) -> tuple[tuple[bytes, bytes], ...]:
    """The same for every stream of a kind, so Response makes them once."""
    made = Response(media_type=media_type, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
    del made.headers["content-length"]
    return tuple(made.raw_headers)


class EventStream(Response):
    """A stream, of server-sent events if `media_type` says nothing else. When the client goes, the generator is closed
    at once, wherever it waits."""

    def __init__(self, events: AsyncGenerator[bytes], media_type: str = "text/event-stream") -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = list(_stream_headers(media_type))
        self._events = events
        self._client: ClientWatch | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._client or ClientWatch(receive)
        try:
            await client.wait_for(self._send(send, scope.get(BODY_SEND, send)))
        except errors.ClientGone:
            pass
        finally:
            client.forget()

    def watched_by(self, client: ClientWatch) -> EventStream:
        """The stream, which ends with its client; it takes the watch over."""
        self._client = client
        return self

    async def _send(self, send: Send, send_body: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_events(send_body)
            await send_body({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()

    async def _send_events(self, send: Send) -> None:
        async for item in self._events:
            await send({"type": "http.response.body", "body": item, "more_body": True})
            break
        # The first event goes out at once. The others do from a task of their own: each would pass all the layers
        # between the server and here again, as a task is resumed through every function that it is in.
        await asyncio.create_task(self._send_others(send))

    async def _send_others(self, send: Send) -> None:
        async for item in self._events:
            await send({"type": "http.response.body", "body": item, "more_body": True})


class OpenAIStream(EventStream):
    """Server-sent events, then [DONE]; an error on the way becomes an event, so that a client always learns the end."""

    async def _send_events(self, send: Send) -> None:
        told = b""
        try:
            await super()._send_events(send)
        except CoreError as error:
            told = event(errors.describe(error)[1])
        except Exception:
            log.exception("a stream failed")
            told = event(errors.body("internal error; the server's log has more", 500))
        await send({"type": "http.response.body", "body": told + DONE, "more_body": True})


class ClientWatch:
    """Whether the client of a request is still there: one task waits for its end, whatever the request's own task does
    meanwhile. Only after the body was read. `forget` ends the watch."""

    def __init__(self, receive: Receive) -> None:
        self._leaving = asyncio.create_task(_disconnected(receive))

    async def wait_for(self, work: Awaitable[T]) -> T:
        """The result of `work`, which runs in the task at hand. If the client goes first, `work` is cancelled, and
        ClientGone raised when it has ended."""
        task = asyncio.current_task()
        assert task is not None
        others = task.cancelling()  # somebody else's wishes that it ends, as the server's when it stops
        running, gone = True, False

        def cancel(_: Any) -> None:
            nonlocal gone
            if running:
                gone = True
                task.cancel()

        self._leaving.add_done_callback(cancel)
        try:
            return await work
        except (asyncio.CancelledError, Exception) as error:
            if gone and task.cancelling() - 1 <= others:
                raise errors.ClientGone from error
            raise
        finally:
            running = False
            self._leaving.remove_done_callback(cancel)
            if gone:
                task.uncancel()

    def forget(self) -> None:
        """Nobody needs to know any more."""
        self._leaving.cancel()


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The response that `work` gives; if the client goes first, `work` is cancelled. Raises ClientGone then."""
    client = ClientWatch(request.receive)
    try:
        response = await client.wait_for(work)
    except BaseException:
        client.forget()
        raise
    if isinstance(response, EventStream):
        response.watched_by(client)
    else:
        client.forget()
    return response


async def _disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
