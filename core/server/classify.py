"""/v1/classify and /classify: which label a text has."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.pooled import PooledBody, envelope, run, tokenized
from core.server.replies import json_reply, while_connected
from core.server.routing import RequestRoute


class ClassifyBody(PooledBody):
    """POST /v1/classify."""

    input: str | list[str] | list[int] | list[list[int]]
    activation: bool | None = Field(
        None, description="Give probabilities (default): softmax, or sigmoid for one label or several at once. "
        "false: scores as the head gives them.",
    )  # fmt: skip
    use_activation: bool | None = Field(None, description="Same as activation.")


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/v1/classify", **described(ClassifyBody, "Labels of texts"))
    @router.post("/classify", include_in_schema=False)
    async def classify(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, ClassifyBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(service, body))

    return router


async def _answer(service: ModelService, body: ClassifyBody) -> Response:
    service.check_model(body.model)
    service.pooler.classify(())  # a model without labels says so before any text is read
    texts = await tokenized(service, body.input, "input", body.truncation)
    done = await run(
        service, service.pooler.classify(texts, activate=activates(body.activation, body.use_activation)), body
    )
    data = [
        {"index": index, "label": found.label, "probs": found.scores, "num_classes": len(found.scores)}
        for index, found in enumerate(done.value)
    ]
    return json_reply(envelope(service, "classify", "list", data, done))


def activates(*given: bool | None) -> bool:
    """Whether scores go through the activation: unless one of the spellings says no."""
    return all(value is not False for value in given)
