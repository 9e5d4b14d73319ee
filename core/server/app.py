"""The application: every family's routes over one context, errors in one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from core.interfaces.errors import CoreError
from core.server import (
    admin,
    chat,
    classify,
    cloud,
    completions,
    embeddings,
    encode,
    errors,
    families,
    generate,
    health,
    info,
    loads,
    metrics_route,
    models,
    page_route,
    rerank,
    score,
    tokenize,
)
from core.server.admin_access import AdminAccess
from core.server.anthropic import routes as anthropic
from core.server.auth import ApiKeys
from core.server.context import ServerContext
from core.server.fields import HEADER, FieldRule
from core.server.observed import ID_HEADER, Observed
from core.server.ollama import routes as ollama
from core.server.plugin_routes import PluginRouter, mount
from core.server.replies import json_reply
from core.server.request_log import RequestLog
from core.server.responses import routes as responses

if TYPE_CHECKING:
    from core.tracing.spans import Tracer


NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}


def build_app(ctx: ServerContext, routers: Sequence[PluginRouter] = (), tracer: Tracer | None = None) -> FastAPI:
    """The ASGI application of one server.

    routers: of plugins. tracer: makes spans; None makes none. Raises PluginClash or PluginLoadError if a router does
    not fit beside the others.
    """
    # Spans are made by `Observed`; FastAPI would look for a provider of its own at every request.
    app = FastAPI(title="core", version=version("core"), docs_url=None, redoc_url=None, telemetry=NO_TELEMETRY)
    app.state.field_rule = FieldRule(ctx.settings.unknown_fields)
    own = (
        chat, completions, generate, embeddings, rerank, score, classify, encode, tokenize, models, health,
        metrics_route, info, loads,
    )  # fmt: skip
    # Added one by one: an included router would be asked twice for every request of those behind it.
    for family in (*own, responses, anthropic, ollama, cloud):
        app.router.routes.extend(family.routes(ctx).routes)
    settings = ctx.settings
    requests = RequestLog(
        settings.log_requests,
        settings.log_requests_level,
        secrets=lambda: ctx.tenants.secrets,
        limit=settings.max_body_bytes,
    )
    if settings.admin_routes != "off":
        app.router.routes.extend(admin.routes(ctx, requests).routes)
    if ctx.settings.chat_page:
        app.router.routes.extend(page_route.routes().routes)
    mount(app, routers, ctx.settings.max_body_bytes)
    app.add_exception_handler(CoreError, _core_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(errors.ClientGone, _client_gone)
    app.add_middleware(ApiKeys, table=ctx.tenants)
    if settings.admin_routes != "off":
        app.add_middleware(AdminAccess, **AdminAccess.arguments(admin.ALL_PATHS, settings, len(ctx.tenants)))
    if ctx.settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(ctx.settings.cors_allow_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[ID_HEADER, HEADER],
        )
    app.add_middleware(Observed, metrics=ctx.metrics, requests=requests, tracer=tracer)
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


def _refused(request: Request, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    status, shape = families.shaped(request.url.path, status, body)
    return json_reply(shape, status, headers)
