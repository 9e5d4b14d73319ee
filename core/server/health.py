"""/health (is it alive?) and /ready (does it take requests?). A probe is never a generation request."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.responses import Response

from core.server.context import Phase, ServerContext
from core.server.replies import json_reply


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/health", summary="Liveness: the engine's loop turns")
    async def health() -> Response:
        loading = ctx.phase is Phase.STARTING
        alive = loading or (ctx.phase is not Phase.FAILED and ctx.engine is not None and ctx.engine.alive)
        state = {"status": ctx.phase.value if alive else "dead", "uptime_s": time.monotonic() - ctx.started_s}
        return json_reply(state, 200 if alive else 503)

    @router.get("/ready", summary="Readiness: requests are accepted")
    async def ready() -> Response:
        accepts = ctx.phase is Phase.READY and ctx.engine is not None and ctx.engine.ready
        status = ctx.phase.value if accepts or ctx.phase is not Phase.READY else "engine restarting"
        return json_reply({"status": status, "problem": ctx.problem or None}, 200 if accepts else 503)

    return router
