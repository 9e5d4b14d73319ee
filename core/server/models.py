"""/v1/models, in OpenAI's shape and Anthropic's at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from core.server.context import ModelService, ServerContext
from core.server.replies import json_reply


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.get("/v1/models", summary="The served model")
    async def models() -> Response:
        card = _card(ctx.ready_service())
        pages = {"has_more": False, "first_id": card["id"], "last_id": card["id"]}
        return json_reply({"object": "list", "data": [card], **pages})

    @router.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> Response:
        service = ctx.ready_service()
        service.check_model(name)
        return json_reply(_card(service))

    return router


def _card(service: ModelService) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "core",
        "root": service.path,
        "parent": None,
        "max_model_len": service.hello.context_length,
        "type": "model",
        "display_name": service.name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
    }
