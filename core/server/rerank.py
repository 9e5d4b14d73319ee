"""/rerank, /v1/rerank and /v2/rerank: documents in the order in which they answer a query."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.pooled import MAX_TEXTS, PooledBody, aside, run
from core.server.replies import json_reply, while_connected
from core.server.routing import RequestRoute


class Document(BaseModel):
    """A document that is more than its text; what else it holds comes back with it."""

    model_config = ConfigDict(extra="allow")
    text: str


class RerankBody(PooledBody):
    """POST /v1/rerank."""

    query: str
    documents: list[str | Document]
    top_n: int | None = Field(None, ge=1, description="Give the best so many. Default: all.")
    return_documents: bool | None = Field(None, description="Give the documents back with their scores (default).")
    instruct: str | None = Field(None, description="What makes a document relevant, for models that are told.")


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    async def rerank(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, RerankBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(service, body))

    router.post("/v1/rerank", **described(RerankBody, "Documents by relevance"))(rerank)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        methods = ["PUT"] if path == "/v1/rerank" else ["POST", "PUT"]
        router.add_api_route(path, rerank, methods=methods, include_in_schema=False)
    return router


async def _answer(service: ModelService, body: RerankBody) -> Response:
    service.check_model(body.model)
    for name in ("query", "documents"):
        if not getattr(body, name):
            raise RequestError(f"{name} is empty", param=name)
    if len(body.documents) > MAX_TEXTS:
        raise RequestError(
            f"documents holds {len(body.documents)} documents; at most {MAX_TEXTS} in one request", param="documents"
        )
    texts = [item if isinstance(item, str) else item.text for item in body.documents]
    names = [f"documents[{index}]" for index in range(len(texts))]
    pairs = [(body.query, text) for text in texts]
    jobs = await aside(
        lambda: service.pooler.compare(pairs, names, instruct=body.instruct or None, truncation=body.truncation),
        len(body.query) * len(texts) + sum(map(len, texts)),
    )
    done = await run(service, jobs, body)
    scores = done.value
    ranked = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n]
    results = [_result(body, index, scores[index]) for index in ranked]
    return json_reply(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "object": "rerank",
            "model": service.name,
            "results": results,
            "usage": done.usage,
        }
    )


def _result(body: RerankBody, index: int, score: float) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index, "relevance_score": score}
    if body.return_documents is not False:
        document = body.documents[index]
        found["document"] = {"text": document} if isinstance(document, str) else document.model_dump()
    return found
