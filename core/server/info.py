"""/server_info and /model_info."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from core.config.fields import SECRET_FIELDS
from core.server.context import ModelService, ServerContext
from core.server.replies import json_reply


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/server_info", summary="What is in effect")
    @router.get("/get_server_info", include_in_schema=False)
    async def server_info() -> Response:
        service = ctx.ready_service()
        settings = ctx.settings.model_dump(mode="json", exclude=set(SECRET_FIELDS))
        return json_reply(
            {
                "version": version("core"),
                "uptime_s": time.monotonic() - ctx.started_s,
                "startup_time": service.hello.load_s,
                "paused": service.engine.paused,
                "model": _model(service),
                "engine": msgspec.to_builtins(service.hello),
                "stats": await service.engine.stats(),
                "server": settings,
                **service.facts,
            }
        )

    @router.get("/model_info", summary="The model")
    @router.get("/get_model_info", include_in_schema=False)
    async def model_info() -> Response:
        return json_reply(_model(ctx.ready_service()))

    return router


def _model(service: ModelService) -> dict[str, Any]:
    return {
        "model_path": service.path,
        "served_model_name": service.name,
        "tokenizer_path": str(service.tokenizer.folder),
        "is_generation": service.plan.task == "generate",
        "task": service.plan.shown_task,
        "pooling": service.plan.pooling,
        "architectures": [service.hello.architecture],
        "context_length": service.hello.context_length,
        "vocab_size": service.hello.vocab_size,
        "has_chat_template": service.tokenizer.template is not None,
        "tool_call_parser": type(service.renderer.tool_parser).__name__ if service.renderer.tool_parser else None,
        "reasoning_parser": type(service.renderer.reasoning_parser).__name__
        if service.renderer.reasoning_parser
        else None,
        "preferred_sampling_params": dict(service.defaults),
    }
