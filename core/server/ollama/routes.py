"""/api/chat, /api/generate, /api/tags, /api/ps, /api/show and /api/version."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.chat import Prompt
from core.frontend.infill import infill, infill_markers
from core.frontend.parameters import Dialect
from core.interfaces.errors import RequestError
from core.interfaces.params import MAX_LOGPROBS
from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.formats import structured
from core.server.ollama import cards
from core.server.ollama.convert import (
    OPTIONS,
    chat_request,
    prompt_request,
    refuse_unsupported,
    response_format,
    sampling_values,
    served_name,
)
from core.server.ollama.replies import Reply
from core.server.ollama.schemas import ChatBody, GenerateBody, GenerationBody, ShowBody
from core.server.openapi import described
from core.server.prompts import make_prompts
from core.server.protocols import answers_to
from core.server.replies import EventStream, json_reply, line, while_connected
from core.server.routing import RequestRoute
from core.server.usage import begun

LINES = "application/x-ndjson"


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/api/chat", **described(ChatBody, "Answer a conversation (Ollama's protocol)"))
    async def chat(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, ChatBody, ctx.settings.max_body_bytes)
        _judge_options(request, body)
        return await while_connected(request, _chat(service, body))

    @router.post("/api/generate", **described(GenerateBody, "Continue a prompt (Ollama's protocol)"))
    async def generate(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, GenerateBody, ctx.settings.max_body_bytes)
        _judge_options(request, body)
        return await while_connected(request, _generate(service, body))

    @router.post("/api/show", **described(ShowBody, "The model's facts (Ollama's protocol)"))
    async def show(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, ShowBody, ctx.settings.max_body_bytes)
        name = body.model or body.name
        if name is None:
            raise RequestError("model is missing", param="model")
        service.check_model(served_name(name, service.name))
        return json_reply(cards.shown(service))

    @router.get("/api/tags", summary="The served model (Ollama's protocol)")
    async def tags() -> Response:
        return json_reply(await asyncio.to_thread(cards.tags, ctx.ready_service()))

    @router.get("/api/ps", summary="The loaded model (Ollama's protocol)")
    async def loaded() -> Response:
        return json_reply(await asyncio.to_thread(cards.loaded, ctx.ready_service()))

    @router.get("/api/version", summary="core's version (Ollama's protocol)")
    async def versions() -> Response:
        return json_reply({"version": version("core")})

    return router


async def _chat(service: ModelService, body: ChatBody) -> Response:
    _check(service, body)
    reply = _reply(service, body, chat=True)
    if not body.messages:
        return _nothing(body, reply)
    return await _answer(service, body, await service.renderer.prepare(chat_request(body)), reply, "messages")


async def _generate(service: ModelService, body: GenerateBody) -> Response:
    _check(service, body)
    refuse_unsupported(body)
    reply = _reply(service, body, chat=False)
    if not (body.prompt or body.system or body.suffix):
        return _nothing(body, reply)
    # A checkpoint without a chat template continues text; that is what this protocol's clients expect of it.
    if body.suffix:
        prompt = _infill(service, body)
    elif body.raw or (service.tokenizer.template is None and not body.system):
        (prompt,) = await make_prompts(service, body.prompt or "", "prompt")
    else:
        prompt = await service.renderer.prepare(prompt_request(body))
    return await _answer(service, body, prompt, reply, "prompt")


def _infill(service: ModelService, body: GenerateBody) -> Prompt:
    """A prompt whose answer stands between `prompt` and `suffix`."""
    markers = infill_markers(service.tokenizer)
    if markers is None:
        raise RequestError(
            "suffix is given, but this model's tokenizer has no markers for filling in",
            param="suffix",
            code="unsupported_parameter",
            hint="leave suffix out, or serve a model that was trained to fill in",
        )
    text = body.prompt or ""
    return Prompt(text, infill(service.tokenizer, markers, text, body.suffix or ""), service.tokenizer)


async def _answer(service: ModelService, body: GenerationBody, prompt: Prompt, reply: Reply, param: str) -> Response:
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = service.sampling(sampling_values(body.options or {}), Dialect.OLLAMA, max_n=1, logprobs=logprobs)
    sampling = structured(sampling, response_format(body), param="format")
    answers = answers_to(service, body, prompt, sampling, param=param)
    deltas = answers.deltas()
    if _streams(body):
        return EventStream(reply.lines(await begun(deltas), answers), LINES)
    return json_reply(await reply.whole(deltas, answers))


def _check(service: ModelService, body: GenerationBody) -> None:
    service.check_model(served_name(body.model, service.name))
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if (body.top_logprobs or 0) > MAX_LOGPROBS:
        raise RequestError(f"top_logprobs is {body.top_logprobs}; at most {MAX_LOGPROBS}", param="top_logprobs")
    if body.think and service.renderer.reasoning_parser is None:
        raise RequestError(
            f"think is {body.think!r}, and {service.name} has no reasoning parser",
            param="think",
            hint="leave think out, or start the server with --reasoning-parser",
        )


def _judge_options(request: Request, body: GenerationBody) -> None:
    """The rule for unknown fields holds for options too."""
    others = {f"options.{name}": value for name, value in (body.options or {}).items() if name not in OPTIONS}
    known = {f"options.{name}": None for name in OPTIONS}
    bodies.ignore(request, bodies.field_rule(request).judge(others, known, request.url.path))


def _reply(service: ModelService, body: GenerationBody, *, chat: bool) -> Reply:
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    return Reply(body.model, service.tokenizer, chat=chat, num_top=num_top)


def _streams(body: GenerationBody) -> bool:
    return body.stream is not False


def _nothing(body: GenerationBody, reply: Reply) -> Response:
    """Clients load and unload a model with a request for no text; here it stays loaded."""
    made = reply.nothing("unload" if body.keep_alive in (0, "0", "0s") else "load")
    return Response(line(made), media_type=LINES) if _streams(body) else json_reply(made)
