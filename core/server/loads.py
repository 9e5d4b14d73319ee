"""/v1/loads: what a balancer wants to know."""

from __future__ import annotations

import contextlib
import datetime
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.interfaces.errors import EngineError, RequestError
from core.metrics.prometheus import CONTENT_TYPE
from core.server.context import ServerContext
from core.server.metrics_route import engine_state
from core.server.replies import json_reply

SECTIONS = ("core", "memory")
FORMATS = ("json", "prometheus")
PREFIX = "core_load_"


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/v1/loads", summary="Load of this server")
    async def loads(request: Request) -> Response:
        asked = request.query_params
        shape, rank = asked.get("format", "json"), asked.get("dp_rank", "0")
        if shape not in FORMATS:
            raise RequestError(f"format is {shape!r}; there are {' and '.join(FORMATS)}", param="format")
        if rank != "0":
            raise RequestError(f"dp_rank is {rank!r}; there is rank 0 only", param="dp_rank")
        sections = [name.strip() for name in asked.get("include", "all").split(",")]
        for name in sections:
            if name not in (*SECTIONS, "all"):
                raise RequestError(f"include has {name!r}; there are all, {', '.join(SECTIONS)}", param="include")
        told = await load(ctx, ("all" in sections) or ("memory" in sections))
        if shape == "prometheus":
            return Response(_text(told, ctx.ready_service().name), media_type=CONTENT_TYPE)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return json_reply(
            {
                "timestamp": now,
                "version": version("core"),
                "dp_rank_count": 1,
                "loads": [{"dp_rank": 0, **told}],
                "aggregate": {
                    "total_running_reqs": told["num_running_reqs"],
                    "total_waiting_reqs": told["num_waiting_reqs"],
                    "total_reqs": told["num_running_reqs"] + told["num_waiting_reqs"],
                    "avg_token_usage": told["token_usage"],
                    "avg_throughput": told["gen_throughput"],
                },
            }
        )

    return router


async def load(ctx: ServerContext, memory: bool = True) -> dict[str, Any]:
    """Numbers of now, in the names that balancers made for SGLang read. Raises NotReady."""
    service = ctx.ready_service()
    with contextlib.suppress(EngineError):  # newer than what the engine sends each second, if it answers
        fresh = await service.engine.control("stats", timeout_s=1.0)
        return _told(ctx, fresh, memory)
    return _told(ctx, (await engine_state(ctx)).values, memory)


def _told(ctx: ServerContext, values: Any, memory: bool) -> dict[str, Any]:
    hello = ctx.ready_service().hello
    capacity = (hello.num_pages - 1) * hello.page_size
    usage = float(values.get("kv_usage_ratio", 0.0))
    told: dict[str, Any] = {
        "num_running_reqs": int(values.get("running_requests", 0)),
        "num_waiting_reqs": int(values.get("waiting_requests", 0)),
        "max_running_requests": hello.max_running_requests,
        "token_usage": usage,
        "gen_throughput": float(values.get("decode_tokens_per_second", 0.0)),
        "cache_hit_rate": float(values.get("cache_hit_ratio", 0.0)),
        "paused": ctx.ready_service().engine.paused,
    }
    if memory:
        told |= {
            "max_total_num_tokens": capacity,
            "num_used_tokens": round(usage * capacity),
            "num_cached_tokens": int(values.get("kv_pages_cached", 0)) * hello.page_size,
        }
    return told


def _text(told: dict[str, Any], model: str) -> bytes:
    """The same as gauges."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    for name, value in told.items():
        gauge = Gauge(PREFIX + name, "See /v1/loads.", ["model"], registry=registry)
        gauge.labels(model).set(float(value))
    return generate_latest(registry)
