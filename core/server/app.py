"""The application: every family's routes over one context, errors in one shape."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.interfaces.errors import CoreError
from core.server import (
    chat,
    cloud,
    completions,
    errors,
    families,
    generate,
    health,
    info,
    metrics_route,
    models,
    page_route,
    tokenize,
)
from core.server.anthropic import routes as anthropic
from core.server.auth import ApiKey
from core.server.bodies import IGNORED
from core.server.context import ServerContext
from core.server.fields import HEADER, FieldRule, header_value
from core.server.ollama import routes as ollama
from core.server.plugin_routes import PluginRouter, mount
from core.server.replies import json_reply
from core.server.responses import routes as responses

log = logging.getLogger("core.server")


def build_app(ctx: ServerContext, routers: Sequence[PluginRouter] = ()) -> FastAPI:
    """The ASGI application of one server.

    routers: of plugins. Raises PluginClash or PluginLoadError if one does not fit beside the others.
    """
    app = FastAPI(title="core", version=version("core"), docs_url=None, redoc_url=None)
    app.state.field_rule = FieldRule(ctx.settings.unknown_fields)
    for family in (chat, completions, generate, tokenize, models, health, metrics_route, info):
        app.include_router(family.routes(ctx))
    for protocol in (responses, anthropic, ollama, cloud):
        app.include_router(protocol.routes(ctx))
    if ctx.settings.chat_page:
        app.include_router(page_route.routes())
    mount(app, routers, ctx.settings.max_body_bytes)
    app.add_exception_handler(CoreError, _core_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(errors.ClientGone, _client_gone)
    app.add_exception_handler(Exception, _internal_error)
    if ctx.settings.api_key:
        app.add_middleware(ApiKey, key=ctx.settings.api_key)
    if ctx.settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(ctx.settings.cors_allow_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(_Counted, ctx=ctx)
    return app


async def _core_error(request: Request, error: Any) -> Response:
    status, shape, headers = families.described(request.url.path, error)
    return json_reply(shape, status, headers)


async def _http_error(request: Request, error: Any) -> Response:
    told = str(error.detail)
    if error.status_code == 404 and "endpoint" not in request.scope:  # a plugin's own 404 says what is missing
        told = f"there is no route {request.url.path}"
    if error.status_code == 405:
        told = f"{request.url.path} does not take {request.method}"
    return _refused(request, errors.body(told, error.status_code), error.status_code, error.headers)


async def _invalid(request: Request, error: Any) -> Response:
    """A plugin's route got what it does not take; core's own routes check their bodies themselves."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return _refused(request, errors.body(f"{where}: {first['msg']}", 400, param=where), 400)


async def _client_gone(request: Request, error: Any) -> Response:
    return _refused(request, errors.body("the client closed the connection", 499), 499)


async def _internal_error(request: Request, error: Any) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _refused(request, errors.body("internal error; the server's log has more", 500), 500)


def _refused(request: Request, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    status, shape = families.shaped(request.url.path, status, body)
    return json_reply(shape, status, headers)


class _Counted:
    """Counts requests by route and status; names ignored fields in the response's headers."""

    def __init__(self, app: ASGIApp, ctx: ServerContext) -> None:
        self._app = app
        self._ctx = ctx

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        start_s = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if ignored := scope.get(IGNORED):
                    MutableHeaders(scope=message)[HEADER] = header_value(ignored)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # Only known routes become labels: paths that clients make up would grow without bound.
            route = getattr(scope.get("route"), "path", "other")
            self._ctx.metrics.http(scope["method"], route, status, time.perf_counter() - start_s)
