"""/metrics, in Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from core.interfaces.errors import EngineError
from core.server.context import Phase, ServerContext


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/metrics", summary="Metrics")
    async def metrics() -> Response:
        if ctx.engine is not None and ctx.phase in (Phase.READY, Phase.DRAINING):
            try:
                ctx.metrics.engine.values = await ctx.engine.stats()
            except EngineError:
                ctx.metrics.engine.values = {}  # no engine, no values; the server's own still count
        return Response(generate_latest(ctx.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
