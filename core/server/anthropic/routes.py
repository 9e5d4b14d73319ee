"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.parameters import Dialect
from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.anthropic.convert import chat_request, response_format
from core.server.anthropic.events import Reply
from core.server.anthropic.schemas import REFUSED, CountBody, MessagesBody, MessagesFields
from core.server.context import ModelService, ServerContext
from core.server.formats import structured
from core.server.openapi import described
from core.server.protocols import answers_to, refuse_fields
from core.server.replies import EventStream, json_reply, while_connected
from core.server.routing import RequestRoute
from core.server.usage import begun, drained


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/v1/messages", **described(MessagesBody, "Answer a conversation (Anthropic's protocol)"))
    async def messages(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, MessagesBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(service, body))

    @router.post("/v1/messages/count_tokens", **described(CountBody, "Count a conversation's tokens"))
    async def count_tokens(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, CountBody, ctx.settings.max_body_bytes)
        service.check_model(body.model)
        prompt = await service.renderer.prepare(chat_request(body))
        return json_reply({"input_tokens": len(prompt.token_ids)})

    return router


async def _answer(service: ModelService, body: MessagesFields) -> Response:
    service.check_model(body.model)
    refuse_fields(body, REFUSED)
    given = body.given()
    if given.get("max_tokens") is None:
        raise RequestError("max_tokens is missing", param="max_tokens")
    sampling = service.sampling(given, Dialect.MESSAGES, max_n=1)
    sampling = structured(sampling, response_format(body), param="output_config.format")
    prompt = await service.renderer.prepare(chat_request(body))
    answers = answers_to(service, body, prompt, sampling, param="messages")
    hides = body.thinking is not None and body.thinking.display == "omitted"
    reply = Reply(service.name, show_thinking=not hides)
    deltas = answers.deltas()
    if body.stream:
        return EventStream(reply.events(await begun(deltas), answers))
    return json_reply(reply.whole(await drained(deltas), answers))
