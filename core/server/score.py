"""/v1/score and /score, in two forms: texts against texts, and probabilities of label tokens behind items."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.pooling import softmax
from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.classify import activates
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.pooled import MAX_TEXTS, PooledBody, aside, envelope, run
from core.server.replies import json_reply, while_connected
from core.server.routing import RequestRoute


class ScoreBody(PooledBody):
    """POST /v1/score: either text_1 and text_2, or query and items."""

    text_1: str | list[str] | None = Field(None, description="One text, or as many as text_2.")
    text_2: str | list[str] | None = Field(None, description="The texts to judge against text_1.")
    activation: bool | None = Field(None, description="Give a head's score through a sigmoid (default).")
    use_activation: bool | None = Field(None, description="Same as activation.")
    query: str | list[int] | None = Field(None, description="What stands before each item.")
    items: str | list[str] | list[list[int]] | None = Field(None, description="Text or ids, one score list each.")
    label_token_ids: list[int] | None = Field(None, description="Tokens whose probability is wanted behind an item.")
    apply_softmax: bool | None = Field(None, description="Share the probability among the labels alone.")
    item_first: bool | None = Field(None, description="Put the item before the query.")


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/v1/score", **described(ScoreBody, "Scores of pairs of texts, or of labels behind items"))
    @router.post("/score", include_in_schema=False)
    async def score(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, ScoreBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(service, body))

    return router


async def _answer(service: ModelService, body: ScoreBody) -> Response:
    service.check_model(body.model)
    if (body.text_1 is None) != (body.text_2 is None) or (body.query is None) != (body.items is None):
        raise RequestError("give text_1 and text_2, or query and items", param="text_1")
    if (body.text_1 is None) == (body.query is None):
        raise RequestError("give either text_1 and text_2, or query and items", param="text_1")
    return await (_pairs(service, body) if body.text_1 is not None else _items(service, body))


async def _pairs(service: ModelService, body: ScoreBody) -> Response:
    first, second = _listed(body.text_1, "text_1"), _listed(body.text_2, "text_2")
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise RequestError(
            f"text_1 holds {len(first)} texts and text_2 {len(second)}; text_1 must hold one, or as many",
            param="text_1",
        )
    pairs = list(zip(first, second, strict=True))
    names = [f"text_2[{index}]" for index in range(len(pairs))]
    activate = activates(body.activation, body.use_activation)
    jobs = await aside(
        lambda: service.pooler.compare(pairs, names, truncation=body.truncation, activate=activate),
        sum(len(a) + len(b) for a, b in pairs),
    )
    done = await run(service, jobs, body)
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(done.value)]
    return json_reply(envelope(service, "score", "list", data, done))


def _listed(given: str | list[str] | None, param: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given or ())
    if not texts:
        raise RequestError(f"{param} is empty", param=param)
    if len(texts) > MAX_TEXTS:
        raise RequestError(f"{param} holds {len(texts)} texts; at most {MAX_TEXTS} in one request", param=param)
    return texts


async def _items(service: ModelService, body: ScoreBody) -> Response:
    pooler = service.pooler
    classifies = service.plan.task == "classify"
    if classifies == bool(body.label_token_ids):
        if classifies:
            raise RequestError(
                "label_token_ids has no meaning: the model scores its own labels", param="label_token_ids"
            )
        raise RequestError("label_token_ids is missing: which tokens' probability is wanted", param="label_token_ids")
    texts = await aside(lambda: _joined(service, body), len(body.query or "") + sum(map(len, body.items or ())))
    if classifies:
        found = await run(service, pooler.classify(texts, activate=False), body)
        raw = [entry.scores for entry in found.value]
        shares = [softmax(np.array(row, np.float32)).tolist() for row in raw]
        scores: list[list[float]] = shares if body.apply_softmax else raw
        usage = found.usage
    else:
        jobs = pooler.next_tokens(texts, body.label_token_ids or (), apply_softmax=bool(body.apply_softmax))
        done = await run(service, jobs, body)
        scores, usage = done.value, done.usage
    return json_reply({"scores": scores, "model": service.name, "usage": usage, "object": "scoring"})


def _joined(service: ModelService, body: ScoreBody) -> list[list[int]]:
    """Each item with the query, as ids: texts are joined before they are encoded."""
    query, given = body.query, body.items
    items: list[Any] = [given] if isinstance(given, str) else list(given or ())
    if not items:
        raise RequestError("items is empty", param="items")
    if len(items) > MAX_TEXTS:
        raise RequestError(f"items holds {len(items)} items; at most {MAX_TEXTS} in one request", param="items")
    made = []
    for index, item in enumerate(items):
        name = f"items[{index}]"
        if isinstance(item, str) != isinstance(query, str):
            raise RequestError(f"query and {name} must both be texts, or both token ids", param=name)
        both: Any = item + query if body.item_first else query + item
        made.append(service.pooler.token_ids(both, name, body.truncation))
    return made
