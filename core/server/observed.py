"""Observed: the outermost layer. Every request has a record, an id, a count, and a span and log lines where wanted.
Fields that count for nothing are named in the response's headers."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server import errors, families
from core.server.bodies import IGNORED
from core.server.fields import HEADER, header_value
from core.server.headers import header
from core.server.replies import BODY_SEND, json_reply
from core.server.request_log import RequestLog
from core.tracing.record import RequestRecord, follow, request_id, unfollow

if TYPE_CHECKING:
    from core.metrics.prometheus import ServerMetrics
    from core.tracing.spans import Tracer

ID_HEADER = "x-request-id"
log = logging.getLogger("core.server")


class Observed:
    """An ASGI layer around everything. tracer: None makes no spans. requests: asked at each request whether to log."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, requests: RequestLog, tracer: Tracer | None) -> None:
        self._app = app
        self._metrics = metrics
        self._requests = requests
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(request_id(header(scope, ID_HEADER.encode())))
        method: str = scope["method"]
        span = self._tracer.begin(record, method, Headers(scope=scope)) if self._tracer is not None else None
        token = follow(record)
        texts = self._requests.begin(scope)
        if texts is None:
            scope[BODY_SEND] = send
        self._metrics.http_begun()
        status, started = 500, False

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                if texts is not None:
                    texts.read(message)
                if not message.get("more_body", False):
                    record.read_s = time.monotonic()
            return message

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                added = MutableHeaders(scope=message)
                added[ID_HEADER] = record.id
                if ignored := scope.get(IGNORED):
                    added[HEADER] = header_value(ignored)
            elif texts is not None:
                texts.sent(message)
            await send(message)

        try:
            await self._app(scope, read, watched)
        except Exception as error:
            log.error("%s %r failed", method, scope["path"], exc_info=error)  # as written: no line breaks
            if started:  # the connection is all that is left to end it with
                raise
            told = errors.body("internal error; the server's log has more", 500)
            status_told, shape = families.shaped(scope["path"], 500, told)
            await json_reply(shape, status_told)(scope, receive, watched)
        finally:
            end_s = time.monotonic()
            # Only known routes become labels: paths that clients make up would grow without bound.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.http(method, route, status, end_s - record.start_s)
            if texts is not None:
                texts.end(record, status, end_s)
            if span is not None and self._tracer is not None:
                self._tracer.end(span, record, route, method, status, end_s)
            unfollow(token)
