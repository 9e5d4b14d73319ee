"""/encode, the native route, and /pooling: whatever the model's vector is, an embedding or a head's raw scores."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.pooling import Vector
from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.pooled import Done, Given, PooledBody, envelope, run, shown_vector, tokenized
from core.server.replies import json_reply, while_connected
from core.server.routing import RequestRoute


class EncodeBody(PooledBody):
    """POST /encode."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    dimensions: int | None = Field(None, ge=1)
    rid: str | list[str] | None = None


class PoolingBody(PooledBody):
    """POST /pooling."""

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/encode", **described(EncodeBody, "Vectors or rewards of texts"))
    @router.put("/encode", include_in_schema=False)
    async def encode(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, EncodeBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _encode(service, body))

    @router.post("/pooling", **described(PoolingBody, "Vectors or raw scores of texts"))
    async def pooling(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, PoolingBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _pooling(service, body))

    return router


async def _vectors(
    service: ModelService, given: Given, param: str, dimensions: int | None, body: PooledBody
) -> Done[list[Vector]]:
    pooler = service.pooler
    texts = await tokenized(service, given, param, body.truncation)
    if service.plan.task != "classify":
        return await run(service, pooler.embed(texts, dimensions), body)
    if dimensions is not None:
        raise RequestError("dimensions has no meaning: the model gives scores", param="dimensions")
    done = await run(service, pooler.classify(texts, activate=False), body)
    rows = [np.array(found.scores, np.float32) for found in done.value]
    return Done(rows, done.lengths, done.cached, done.seconds)


async def _encode(service: ModelService, body: EncodeBody) -> Response:
    started_s = time.perf_counter()
    service.check_model(body.model)
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("give either text or input_ids", param="text")
    param, given = ("text", body.text) if body.text is not None else ("input_ids", body.input_ids)
    assert given is not None
    single = isinstance(given, str) or bool(given and isinstance(given[0], int))
    done = await _vectors(service, given, param, body.dimensions, body)
    ids = [body.rid] if isinstance(body.rid, str) else body.rid or [uuid.uuid4().hex for _ in done.value]
    if len(ids) != len(done.value):
        raise RequestError(f"rid lists {len(ids)} for {len(done.value)} texts", param="rid")
    seconds = time.perf_counter() - started_s
    made: list[dict[str, Any]] = [
        {
            "embedding": shown_vector(vector, "float"),
            "meta_info": {"id": name, "prompt_tokens": tokens, "e2e_latency": seconds},
        }
        for vector, name, tokens in zip(done.value, ids, done.lengths, strict=True)
    ]
    return json_reply(made[0] if single else made)


async def _pooling(service: ModelService, body: PoolingBody) -> Response:
    service.check_model(body.model)
    done = await _vectors(service, body.input, "input", body.dimensions, body)
    encoding = body.encoding_format or "float"
    data = [
        {"index": index, "object": "pooling", "data": shown_vector(vector, encoding)}
        for index, vector in enumerate(done.value)
    ]
    return json_reply(envelope(service, "pool", "list", data, done))
