"""Vectors: /v1/embeddings (OpenAI), /api/embed and /api/embeddings (Ollama)."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.pooling import Truncation
from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.pooled import PooledBody, envelope, run, shown_vector, tokenized
from core.server.replies import json_reply, while_connected
from core.server.routing import RequestRoute

LATEST = ":latest"  # the tag that Ollama's clients put behind a name without one


class EmbeddingBody(PooledBody):
    """POST /v1/embeddings."""

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: of little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="Length of the vectors, where the model can be cut.")


class OllamaEmbedBody(PooledBody):
    """POST /api/embed."""

    input: str | list[str]
    truncate: bool | None = Field(None, description="Cut texts that are too long (default) instead of refusing them.")
    dimensions: int | None = Field(None, ge=1)
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None


class OllamaEmbeddingsBody(PooledBody):
    """POST /api/embeddings, Ollama's older route."""

    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/v1/embeddings", **described(EmbeddingBody, "Vectors of texts"))
    async def embeddings(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, EmbeddingBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _embeddings(service, body))

    @router.post("/api/embed", **described(OllamaEmbedBody, "Vectors of texts, in Ollama's form"))
    async def embed(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, OllamaEmbedBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _embed(service, body))

    @router.post("/api/embeddings", **described(OllamaEmbeddingsBody, "The vector of a text, in Ollama's form"))
    async def old_embeddings(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, OllamaEmbeddingsBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _old_embeddings(service, body))

    return router


async def _embeddings(service: ModelService, body: EmbeddingBody) -> Response:
    service.check_model(body.model)
    service.pooler.embed((), body.dimensions)  # a model that gives no vectors says so before any text is read
    texts = await tokenized(service, body.input, "input", body.truncation)
    done = await run(service, service.pooler.embed(texts, body.dimensions), body)
    encoding = body.encoding_format or "float"
    data = [
        {"object": "embedding", "index": index, "embedding": shown_vector(vector, encoding)}
        for index, vector in enumerate(done.value)
    ]
    return json_reply(envelope(service, "embd", "list", data, done))


async def _embed(service: ModelService, body: OllamaEmbedBody) -> Response:
    body = body.model_copy(update={"model": _untagged(service, body.model)})
    service.check_model(body.model)
    # Settings of a model that is loaded already: none of them reaches a vector.
    _no_options(body.options)
    service.pooler.embed((), body.dimensions)
    truncation = Truncation(-1 if body.truncate is not False else None)
    texts = await tokenized(service, body.input, "input", truncation) if body.input else []
    done = await run(service, service.pooler.embed(texts, body.dimensions), body)
    return json_reply(
        {
            "model": body.model or service.name,
            "embeddings": [shown_vector(vector, "float") for vector in done.value],
            "total_duration": int(done.seconds * 1e9),
            "load_duration": 0,
            "prompt_eval_count": done.tokens,
        }
    )


async def _old_embeddings(service: ModelService, body: OllamaEmbeddingsBody) -> Response:
    body = body.model_copy(update={"model": _untagged(service, body.model)})
    service.check_model(body.model)
    _no_options(body.options)
    service.pooler.embed(())
    texts = await tokenized(service, body.prompt, "prompt", Truncation(-1)) if body.prompt else []
    done = await run(service, service.pooler.embed(texts), body)
    return json_reply({"embedding": shown_vector(done.value[0], "float") if done.value else []})


def _untagged(service: ModelService, name: str | None) -> str | None:
    return name.removesuffix(LATEST) if name is not None and name != service.name else name


def _no_options(options: dict[str, Any] | None) -> None:
    for name in options or {}:
        raise RequestError(
            f"options.{name} has no effect on vectors here", param=f"options.{name}",
            hint="limits of the context are set when the server starts, with --context-length",
        )  # fmt: skip
