"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.chat import ChatRequest
from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.replies import json_reply
from core.server.routing import RequestRoute
from core.server.schemas import DetokenizeBody, TokenizeBody

MIN_DETOKENIZED = 1 << 16  # ids that any request may bring; they take Python's lock, some microseconds each


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/tokenize", **described(TokenizeBody, "Text or messages to token ids"))
    @router.post("/v1/tokenize", include_in_schema=False)
    async def tokenize(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, TokenizeBody, ctx.settings.max_body_bytes)
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("give either prompt or messages", param="prompt")
        return json_reply(await _tokenized(service, body))

    @router.post("/detokenize", **described(DetokenizeBody, "Token ids to text"))
    @router.post("/v1/detokenize", include_in_schema=False)
    async def detokenize(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, DetokenizeBody, ctx.settings.max_body_bytes)
        service.check_model(body.model)
        skip = body.skip_special_tokens is not False
        lists = [ids if isinstance(ids, list) else [ids] for ids in body.tokens]
        total, limit = sum(map(len, lists)), max(MIN_DETOKENIZED, service.hello.context_length)
        if total > limit:
            raise RequestError(f"tokens holds {total} ids; at most {limit} in one request", param="tokens")
        if body.tokens and isinstance(body.tokens[0], list):
            text: Any = [service.tokenizer.decode(ids, skip) for ids in lists]
        else:
            text = service.tokenizer.decode([ids[0] for ids in lists], skip)
        return json_reply({"text": text, "prompt": text})

    return router


async def _tokenized(service: ModelService, body: TokenizeBody) -> dict[str, Any]:
    if body.messages is not None:
        chat = ChatRequest(
            body.messages,
            tools=tuple(body.tools or ()),
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            template_variables=body.chat_template_kwargs or {},
        )
        lists = [(await service.renderer.prepare(chat)).token_ids]
    else:
        texts = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt or ())
        lists = [await service.tokenizer.encode_async(text, body.add_special_tokens is not False) for text in texts]
    single = body.messages is not None or isinstance(body.prompt, str)
    counts = [len(ids) for ids in lists]
    made: dict[str, Any] = {
        "tokens": lists[0] if single else lists,
        "count": counts[0] if single else counts,
        "max_model_len": service.hello.context_length,
    }
    if body.return_token_strs:
        shown = [[service.tokenizer.piece(token)[0] for token in ids] for ids in lists]
        made["token_strs"] = shown[0] if single else shown
    return made
