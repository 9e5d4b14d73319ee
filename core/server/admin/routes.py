"""All admin routes."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.engine.client import EngineClient
from core.interfaces.errors import EngineDead, EngineError, RequestError
from core.server.admin.bodies import AbortBody, LoggingBody, PauseBody, ProfileBody, read
from core.server.admin.folders import below
from core.server.context import ServerContext
from core.server.openapi import described
from core.server.replies import json_reply, while_connected
from core.server.request_log import RequestLog

FLUSH_POLL_S = 0.05
MAX_FLUSH_WAIT_S = 600.0
PROFILE_TIMEOUT_S = 600.0  # a trace of many steps takes long to write
ALL_PATHS = frozenset(
    {
        "/abort_request", "/configure_logging", "/continue_generation", "/flush_cache", "/pause",
        "/pause_generation", "/reset_prefix_cache", "/resume", "/start_profile", "/stop_profile",
    }
)  # fmt: skip
log = logging.getLogger("core.server.admin")


def routes(ctx: ServerContext, requests: RequestLog) -> APIRouter:
    """The router of this family. requests: the request log, which /configure_logging changes."""
    router = APIRouter()
    _add_cache(router, ctx)
    _add_requests(router, ctx)
    _add_profile(router, ctx)
    _add_logging(router, ctx, requests)
    return router


def _add_cache(router: APIRouter, ctx: ServerContext) -> None:
    @router.post("/flush_cache", summary="Forget cached prefixes")
    @router.post("/reset_prefix_cache", include_in_schema=False)
    async def flush_cache(request: Request) -> Response:
        engine = ctx.ready_service().engine
        await while_connected(request, _flush(engine, _seconds(request)))
        return json_reply({"success": True})


async def _flush(engine: EngineClient, timeout_s: float) -> None:
    """Flush, and try again until the timeout while requests run."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            return await engine.flush_cache()
        except EngineDead:
            raise
        except EngineError as error:
            if time.monotonic() >= until_s:
                raise RequestError(error.message, status=409, code="busy", hint=error.hint) from error
        await asyncio.sleep(FLUSH_POLL_S)


def _seconds(request: Request) -> float:
    given = request.query_params.get("timeout", "0")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_FLUSH_WAIT_S:
        raise RequestError(f"timeout is {given!r}; give 0 to {MAX_FLUSH_WAIT_S:.0f} seconds", param="timeout")
    return seconds


def _add_requests(router: APIRouter, ctx: ServerContext) -> None:
    @router.post("/abort_request", **described(AbortBody, "End running requests"))
    async def abort_request(request: Request) -> Response:
        engine = ctx.ready_service().engine
        body = await read(request, AbortBody)
        names = [body.rid] if isinstance(body.rid, str) else body.rid
        names = [name for name in names if name]
        if bool(names) == body.abort_all:
            raise RequestError("give either rid or abort_all: true", param="rid")
        num_aborted = engine.abort(None if body.abort_all else names)
        log.info("aborted %d requests: %s", num_aborted, "all" if body.abort_all else repr(names[:20])[:200])
        return json_reply({"success": True, "num_aborted": num_aborted})

    @router.post("/pause_generation", **described(PauseBody, "Run no steps from now on"))
    async def pause_generation(request: Request) -> Response:
        engine = ctx.ready_service().engine
        return await _pause(engine, (await read(request, PauseBody)).mode)

    @router.post("/pause", include_in_schema=False)
    async def pause(request: Request) -> Response:
        engine = ctx.ready_service().engine
        mode = request.query_params.get("mode", "abort")
        if mode not in ("abort", "in_place", "keep"):
            raise RequestError(f"mode is {mode!r}; there are abort, in_place and keep", param="mode")
        return await _pause(engine, mode)

    @router.post("/continue_generation", summary="Run steps again")
    @router.post("/resume", include_in_schema=False)
    async def continue_generation() -> Response:
        engine = ctx.ready_service().engine
        await engine.control("resume")
        log.info("the engine goes on")
        return json_reply({"success": True, "paused": False})


async def _pause(engine: EngineClient, mode: str) -> Response:
    await engine.control("pause")
    num_aborted = engine.abort() if mode == "abort" else 0
    log.info("the engine is paused (%s), %d requests aborted", mode, num_aborted)
    return json_reply(
        {"success": True, "paused": True, "num_aborted": num_aborted, "num_requests": engine.num_requests}
    )


def _add_profile(router: APIRouter, ctx: ServerContext) -> None:
    @router.post("/start_profile", **described(ProfileBody, "Record what the engine's steps do"))
    async def start_profile(request: Request) -> Response:
        engine = ctx.ready_service().engine
        body = await read(request, ProfileBody)
        folder = below(ctx.settings.profile_dir, body.output_dir)
        started = await _asked(
            engine,
            "start_profile",
            folder=str(folder),
            num_steps=body.num_steps,
            activities=body.activities,
            with_stack=body.with_stack,
            record_shapes=body.record_shapes,
            prefix=body.profile_prefix,
        )
        return json_reply({"success": True, **started})

    @router.post("/stop_profile", summary="End the recording and write it")
    async def stop_profile() -> Response:
        return json_reply({"success": True, **await _asked(ctx.ready_service().engine, "stop_profile")})


async def _asked(engine: EngineClient, op: str, **arguments: object) -> dict[str, object]:
    """The engine's answer; what it refuses is a conflict with its state."""
    try:
        return await engine.control(op, timeout_s=PROFILE_TIMEOUT_S, **arguments)
    except EngineDead:
        raise
    except EngineError as error:
        raise RequestError(error.message, status=409, hint=error.hint) from error


def _add_logging(router: APIRouter, ctx: ServerContext, requests: RequestLog) -> None:
    @router.post("/configure_logging", **described(LoggingBody, "Change what is logged"))
    async def configure_logging(request: Request) -> Response:
        engine = ctx.ready_service().engine
        body = await read(request, LoggingBody)
        if body.log_level is not None:
            await engine.control("set_log_level", level=body.log_level)
            logging.getLogger("core").setLevel(body.log_level.upper())
        if body.log_requests is not None:
            requests.enabled = body.log_requests
        if body.log_requests_level is not None:
            requests.level = body.log_requests_level
        return json_reply(
            {
                "success": True,
                "log_level": logging.getLevelName(logging.getLogger("core").getEffectiveLevel()).lower(),
                "log_requests": requests.enabled,
                "log_requests_level": requests.level,
            }
        )
