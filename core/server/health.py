"""/health (is it alive?), /ready (does it take requests?), /health_generate (does it generate?).

The first two are never a request to the model. The third is one, of a single token, but only where nothing else shows
that the engine works: it asks an idle engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from core.engine.client import EngineClient, EngineRequest
from core.engine.messages import Hello
from core.interfaces.errors import CoreError
from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.prefix_cache import Namespace
from core.server.context import Phase, ServerContext
from core.server.replies import json_reply

GENERATE_TIMEOUT_S = 20.0
PAUSED = "paused"


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()
    prober = Prober()

    @router.get("/health", summary="Liveness: the engine's loop turns")
    async def health() -> Response:
        alive = _alive(ctx)
        state = {"status": ctx.phase.value if alive else "dead", "uptime_s": time.monotonic() - ctx.started_s}
        return json_reply(state, 200 if alive else 503)

    @router.get("/ready", summary="Readiness: requests are accepted")
    async def ready() -> Response:
        status = _status(ctx)
        accepts = status == Phase.READY.value
        return json_reply({"status": status, "problem": ctx.problem or None}, 200 if accepts else 503)

    @router.get("/health_generate", summary="A token is generated, if nothing runs")
    async def health_generate() -> Response:
        status = _status(ctx)
        if status == PAUSED or (_alive(ctx) and ctx.engine is not None and ctx.engine.num_requests):
            return json_reply({"status": status, "generated": False}, 200 if _alive(ctx) else 503)
        if status != Phase.READY.value or ctx.service is None or ctx.engine is None:
            return json_reply({"status": status, "generated": False}, 503)
        problem = await prober.problem(ctx.engine, ctx.service.hello)
        return json_reply({"status": status, "generated": not problem, "problem": problem}, 503 if problem else 200)

    return router


def _alive(ctx: ServerContext) -> bool:
    loading = ctx.phase is Phase.STARTING
    return loading or (ctx.phase is not Phase.FAILED and ctx.engine is not None and ctx.engine.alive)


def _status(ctx: ServerContext) -> str:
    """Where the server stands, in a word or two."""
    if ctx.phase is not Phase.READY:
        return ctx.phase.value
    if ctx.engine is None or not ctx.engine.ready:
        return "engine restarting"
    return PAUSED if ctx.engine.paused else ctx.phase.value


class Prober:
    """Asks an engine for one token; those who want to know at the same time share the answer."""

    def __init__(self) -> None:
        self._running: asyncio.Task[str | None] | None = None

    async def problem(self, engine: EngineClient, hello: Hello) -> str | None:
        """What is wrong, or None."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(_generate(engine, hello))
        return await asyncio.shield(self._running)


async def _generate(engine: EngineClient, hello: Hello) -> str | None:
    token = next(iter(hello.eos_token_ids), 0)
    # A namespace of its own: nothing that clients send is answered from the memory of a probe.
    request = EngineRequest(
        np.array([token], np.int32),
        SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
        namespace=Namespace(salt="health_generate"),
        seed=0,
        pooling=_wanted(hello),
    )
    chunks = engine.generate(request)  # past the limits of tenants
    try:
        async with asyncio.timeout(GENERATE_TIMEOUT_S):
            async for chunk in chunks:
                if chunk.error is not None:
                    return chunk.error
        return None
    except TimeoutError:
        return f"no token within {GENERATE_TIMEOUT_S:.0f} s"
    except CoreError as error:
        return error.message
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            with contextlib.suppress(CoreError):
                await close()


def _wanted(hello: Hello) -> PoolingParams | None:
    """A model that generates nothing is asked for a vector."""
    task = hello.effective.get("task")
    if task not in ("embed", "classify"):
        return None
    return PoolingParams(head="scores" if task == "classify" else "none")
