"""/v1/responses and what was kept of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.parameters import Dialect
from core.frontend.pump import Answers
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.server import bodies
from core.server.auth import TENANT
from core.server.context import ModelService, ServerContext
from core.server.formats import structured
from core.server.openapi import described
from core.server.protocols import answers_to, refuse_fields
from core.server.replies import EventStream, json_reply, named_event, while_connected
from core.server.responses.events import Deltas, Event, Writer
from core.server.responses.items import chat_request, input_items, response_format
from core.server.responses.schemas import REFUSED, ResponsesBody, ResponsesFields
from core.server.responses.store import HINT, RUNNING, Kept, ResponseStore
from core.server.routing import RequestRoute
from core.server.tenants.visit import current_visit
from core.server.usage import begun
from core.tracing.record import reply_id

_MAX_PAGE = 100


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family. It owns the kept responses."""
    router = APIRouter(route_class=RequestRoute)
    store = ResponseStore(ctx.settings.response_store, ctx.settings.response_store_bytes)

    @router.post("/v1/responses", **described(ResponsesBody, "Answer a conversation of items"))
    async def create(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, ResponsesBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(service, store, body, _owner(request)))

    @router.get("/v1/responses/{response_id}", summary="A kept response")
    async def retrieve(request: Request, response_id: str) -> Response:
        kept = store.get(response_id, _owner(request))
        if request.query_params.get("stream", "false").lower() in ("true", "1"):
            raise RequestError(
                "stream is not supported here: a kept response is given whole",
                param="stream",
                code="unsupported_parameter",
            )
        return json_reply(kept.response)

    @router.delete("/v1/responses/{response_id}", summary="Forget a kept response")
    async def delete(request: Request, response_id: str) -> Response:
        await store.delete(response_id, _owner(request))
        return json_reply({"id": response_id, "object": "response", "deleted": True})

    @router.post("/v1/responses/{response_id}/cancel", summary="End a response made in the background")
    async def cancel(request: Request, response_id: str) -> Response:
        return json_reply((await store.cancel(response_id, _owner(request))).response)

    @router.get("/v1/responses/{response_id}/input_items", summary="What a kept response answers")
    async def listed(request: Request, response_id: str) -> Response:
        return json_reply(_page(store.get(response_id, _owner(request)).items, request.query_params))

    return router


@dataclass(frozen=True, slots=True)
class _Making:
    """One response being made. items: all that it answers. owner: whose it is."""

    writer: Writer
    deltas: Deltas
    answers: Answers
    items: list[dict[str, Any]]
    owner: str | None

    def kept(self, response: dict[str, Any]) -> Kept:
        """`response`, for the store."""
        return Kept(response, self.items, self.owner)


def _owner(request: Request) -> str | None:
    """Whose request it is, as the layer that checks keys found out."""
    owner: str | None = request.scope.get(TENANT)
    return owner


async def _answer(service: ModelService, store: ResponseStore, body: ResponsesFields, owner: str | None) -> Response:
    service.check_model(body.model)
    _refuse(body, store)
    keep = store.on and body.store is not False
    making = await _begin(service, store, body, keep, owner)
    if body.background:
        store.reserve()
        kept = making.kept({**making.writer.response, "status": "queued"})
        kept.work = asyncio.create_task(_work(making, store, kept))
        if (visit := current_visit.get()) is not None:  # the key's limits hold until the work is done
            visit.hold()
            kept.work.add_done_callback(lambda _: visit.end())
        store.put(kept)
        return json_reply(kept.response)
    if body.stream:
        started = replace(making, deltas=await begun(making.deltas))
        return EventStream(_stream(started, store if keep else None))
    async with aclosing(making.writer.events(making.deltas, making.answers)) as events:
        async for _ in events:
            pass
    if keep:
        store.put(making.kept(making.writer.response))
    return json_reply(making.writer.response)


async def _begin(
    service: ModelService, store: ResponseStore, body: ResponsesFields, keep: bool, owner: str | None
) -> _Making:
    before: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        before = _before(store, body.previous_response_id, owner)
    own = input_items(body.input)
    wants_logprobs = "message.output_text.logprobs" in (body.include or ()) or bool(body.top_logprobs)
    num_top = (body.top_logprobs or 0) if wants_logprobs else None
    sampling = service.sampling(body.given(), Dialect.RESPONSES, max_n=1, logprobs=num_top)
    sampling = structured(sampling, response_format(body), param="text.format")
    prompt = await service.renderer.prepare(chat_request(body, before, own))
    answers = answers_to(service, body, prompt, sampling, param="input")
    summarize = body.reasoning is not None and body.reasoning.summary is not None
    writer = Writer(_frame(service, body, sampling, keep), service.tokenizer, num_top=num_top, summarize=summarize)
    return _Making(writer, answers.deltas(), answers, [*before, *own], owner)


async def _stream(making: _Making, store: ResponseStore | None) -> AsyncGenerator[bytes]:
    async with aclosing(making.writer.safe_events(making.deltas, making.answers)) as events:
        async for event in events:
            if store is not None and _ends(event):
                store.put(making.kept(event["response"]))
            yield named_event(event)


async def _work(making: _Making, store: ResponseStore, kept: Kept) -> None:
    """Make a response in the background."""
    async with aclosing(making.writer.safe_events(making.deltas, making.answers)) as events:
        async for event in events:
            if "response" in event and event["type"] != "response.created":
                kept.response = event["response"]
    store.put(kept)


def _ends(event: Event) -> bool:
    return "response" in event and event["response"]["status"] not in RUNNING


def _before(store: ResponseStore, name: str, owner: str | None) -> list[dict[str, Any]]:
    """The conversation up to and with an earlier response."""
    kept = store.get(name, owner, "previous_response_id")
    if kept.response["status"] not in ("completed", "incomplete"):
        raise RequestError(
            f"the response {name!r} is {kept.response['status']}; only a complete one can be gone on with",
            param="previous_response_id",
        )
    return [*kept.items, *kept.response["output"]]


def _refuse(body: ResponsesFields, store: ResponseStore) -> None:
    """Raises RequestError for what would change the answer and is not supported."""
    refuse_fields(body, REFUSED)
    if body.truncation == "auto":
        raise RequestError("truncation is 'auto'; only 'disabled' is supported", param="truncation")
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise RequestError(f"text.verbosity is {body.text.verbosity!r}; only 'medium' is", param="text.verbosity")
    if body.store and not store.on:
        raise RequestError("this server keeps no responses", param="store", hint=HINT)
    if body.background and (not store.on or body.store is False):
        raise RequestError("background needs the response to be kept", param="background", hint=HINT)
    if body.background and body.stream:
        raise RequestError("background and stream do not go together; ask for it with GET", param="stream")


def _frame(service: ModelService, body: ResponsesFields, sampling: SamplingParams, keep: bool) -> dict[str, Any]:
    """The response before anything is generated: what was asked for, and what is in effect."""
    reasoning = body.reasoning
    return {
        "id": reply_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.given().get("max_output_tokens"),
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": service.name,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "service_tier": "default",
        "store": keep,
        "temperature": sampling.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _page(items: list[dict[str, Any]], query: Any) -> dict[str, Any]:
    """A page of a list: `order` (desc: the newest first), `after` an id, `limit`."""
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order!r}; it must be one of asc, desc", param="order")
    if not limit.isdecimal() or not 1 <= int(limit) <= _MAX_PAGE:
        raise RequestError(f"limit is {limit!r}; it must be between 1 and {_MAX_PAGE}", param="limit")
    listed = items if order == "asc" else items[::-1]
    after = query.get("after")
    if after is not None:
        at = next((index for index, item in enumerate(listed) if item["id"] == after), None)
        if at is None:
            raise RequestError(f"after is {after!r}; no item has this id", param="after")
        listed = listed[at + 1 :]
    data = listed[: int(limit)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(listed) > len(data),
    }
