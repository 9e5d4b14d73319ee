"""/metrics, in Prometheus' text format."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter
from starlette.responses import Response

from core.interfaces.errors import EngineError
from core.metrics.prometheus import CONTENT_TYPE
from core.server.context import Phase, ServerContext


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/metrics", summary="Metrics")
    async def metrics() -> Response:
        values: dict[str, float] = {}
        engine = ctx.engine
        if engine is not None and ctx.phase in (Phase.READY, Phase.DRAINING):
            with contextlib.suppress(EngineError):  # no engine, no values; the server's own still count
                values = await engine.stats()
        ready = engine is not None and engine.ready
        ctx.metrics.engine(values, ready, getattr(engine, "num_restarts", 0))
        return Response(ctx.metrics.render() + ctx.plugin_metrics.render(), media_type=CONTENT_TYPE)

    return router
