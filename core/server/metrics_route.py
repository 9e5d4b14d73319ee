"""/metrics, in Prometheus' text format."""

from __future__ import annotations

import contextlib
from importlib.metadata import version

from fastapi import APIRouter
from starlette.responses import Response

from core.interfaces.errors import EngineError
from core.metrics.prometheus import CONTENT_TYPE, EngineFacts, EngineState
from core.server.context import ModelService, Phase, ServerContext

# What was chosen, as labels of core_info. /metrics is open: nothing that tells of this machine.
SHOWN: tuple[str, ...] = (
    "attention_backend", "device", "dtype", "grammar_backend", "moe_backend", "prefix_cache", "quantization",
)  # fmt: skip


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/metrics", summary="Metrics")
    async def metrics() -> Response:
        ctx.metrics.engine(await engine_state(ctx))
        return Response(ctx.metrics.render() + ctx.plugin_metrics.render(), media_type=CONTENT_TYPE)

    return router


async def engine_state(ctx: ServerContext) -> EngineState:
    """What is known of the engine right now; never raises and never waits for it."""
    engine = ctx.engine
    if engine is None:
        return EngineState()
    values: dict[str, float] = {}
    if ctx.phase in (Phase.READY, Phase.DRAINING):
        with contextlib.suppress(EngineError):  # no engine, no values; the server's own still count
            values = await engine.stats()
    return EngineState(
        values=values,
        ready=engine.ready,
        paused=engine.paused,
        num_restarts=getattr(engine, "num_restarts", 0),
        num_requests=engine.num_requests,
        num_tokens=engine.num_tokens,
        facts=_facts(ctx.service) if ctx.service is not None else None,
    )


def _facts(service: ModelService) -> EngineFacts:
    hello = service.hello
    chosen: dict[str, str] = {
        name: hello.effective[name]
        for name in (
            "attention_backend",
            "device",
            "dtype",
            "moe_backend",
            "prefix_cache",
            "quantization",
            "grammar_backend",
        )
        if name in hello.effective
    }
    info = {"version": version("core"), "architecture": hello.architecture}
    return EngineFacts(info | chosen, hello.phases, hello.load_s, hello.page_size, hello.context_length)
