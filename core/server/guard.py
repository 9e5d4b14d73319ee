"""PluginGuard: what core's routes do for themselves, around those of plugins: body limit, end with the client."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server import errors
from core.server.replies import json_reply

# Generations that the request at hand has begun. None outside of a plugin's request.
begun_generations: ContextVar[list[AsyncGenerator[Any]] | None] = ContextVar("begun_generations", default=None)


class PluginGuard:
    """An ASGI layer around the routes of plugins; others pass. patterns: of their paths. limit: bytes of a body."""

    def __init__(self, app: ASGIApp, patterns: Sequence[re.Pattern[str]], limit: int) -> None:
        self._app = app
        self._patterns = tuple(patterns)
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not any(pattern.match(scope["path"]) for pattern in self._patterns):
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "0")
        if told.isdigit() and int(told) > self._limit:
            shape = errors.body(self._too_large, 413, code="body_too_large")
            await json_reply(shape, 413)(scope, receive, send)
            return
        await self._guarded(scope, receive, send)

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self._limit} bytes"

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the route; when the client goes first, cancel it and whatever it generates."""
        inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        started = complete = False

        async def read() -> Message:
            message = await inbox.get()
            if message is None:
                raise HTTPException(413, self._too_large)
            return message

        async def watched(message: Message) -> None:
            nonlocal started, complete
            started = started or message["type"] == "http.response.start"
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        generations: list[AsyncGenerator[Any]] = []
        token = begun_generations.set(generations)
        try:
            answering = asyncio.ensure_future(self._app(scope, read, watched))
        finally:
            begun_generations.reset(token)
        reading = asyncio.ensure_future(self._read(receive, inbox))
        try:
            await asyncio.wait({answering, reading}, return_when=asyncio.FIRST_COMPLETED)
            if complete:  # a client may go then; the route may still have something to do
                await asyncio.wait({answering})
            if answering.done():
                answering.result()
                return
        finally:
            left = not answering.done()
            for task in (answering, reading):
                task.cancel()
            await asyncio.gather(answering, reading, return_exceptions=True)
            if left:
                await _close(generations)
        if not started:
            await json_reply(errors.body("the client closed the connection", 499), 499)(scope, receive, send)

    async def _read(self, receive: Receive, inbox: asyncio.Queue[Message | None]) -> None:
        """Messages for the route, up to the limit. Returns when the client is gone."""
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                inbox.put_nowait(message)
                return
            refused = size > self._limit
            size += len(message.get("body", b""))
            if not refused:  # what comes after the first too many bytes is thrown away
                inbox.put_nowait(message if size <= self._limit else None)


async def _close(generations: Sequence[AsyncGenerator[Any]]) -> None:
    """End what the route has left behind; not what another task of the plugin is reading right now."""
    for generation in generations:
        with contextlib.suppress(RuntimeError):
            await generation.aclose()
