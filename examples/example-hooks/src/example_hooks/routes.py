"""The route. Core serves it behind its own keys and limits, and only if it is named with --routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from core.interfaces.params import SamplingParams
from core.interfaces.routes import RoutePlugin, ServerAccess

_QUESTION = "Find a short title for this text. Answer with the title only.\n\n"
_MOST_TOKENS = 24


class Text(BaseModel):
    """The request's body."""

    text: str = Field(min_length=1)


class Titles(RoutePlugin):
    """POST /titles {"text": ...} -> {"title": ..., "tokens": ...}."""

    def router(self, server: ServerAccess) -> APIRouter:
        router = APIRouter()

        @router.post("/titles")
        async def titles(body: Text) -> dict[str, Any]:
            # What a route asks is a request like any client's: same limits, same errors, cancelled with its client.
            prompt = server.render_chat([{"role": "user", "content": _QUESTION + body.text}])
            title, tokens = "", 0
            async for piece in server.generate(prompt, SamplingParams(temperature=0.0, max_tokens=_MOST_TOKENS)):
                title += piece.text
                tokens = piece.num_output_tokens
            return {"title": title.strip(), "tokens": tokens}

        return router
