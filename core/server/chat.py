"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.chat import ChatRequest, Prompt
from core.frontend.output import OutputDelta, TokenLogprob
from core.frontend.parameters import Dialect
from core.frontend.processors import with_processors
from core.frontend.pump import Answers
from core.frontend.structured import with_grammar
from core.frontend.tool_policy import ToolCallPiece
from core.interfaces.errors import RequestError
from core.interfaces.params import MAX_LOGPROBS
from core.server import bodies, reading
from core.server.asked import (
    all_vocabulary_refused,
    client_ids,
    hidden_of,
    prompt_logprobs_of,
    shown_prompt_logprobs,
    truncated,
    with_prompt,
)
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.replies import OpenAIStream, TextEvent, event, json_reply, while_connected
from core.server.routing import RequestRoute
from core.server.schemas import ChatBody, ChatFields
from core.server.thinking import thinking_variables
from core.server.usage import Source, UsagePolicy, begun, chat_logprobs, drained, usage_object
from core.tracing.record import reply_id

Deltas = Source[tuple[int, OutputDelta]]


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/v1/chat/completions", **described(ChatBody, "Answer a conversation"))
    async def chat_completions(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, ChatBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(ctx, service, body))

    return router


async def _answer(ctx: ServerContext, service: ModelService, body: ChatFields) -> Response:
    service.check_model(body.model)
    given = body.given()
    sampling = service.sampling(given, Dialect.CHAT, max_n=ctx.settings.max_n, logprobs=_num_logprobs(body))
    sampling = with_processors(with_grammar(sampling, given), given)
    sampling = with_prompt(body, sampling, all_vocabulary_refused(body.prompt_logprobs))
    prompt = truncated(service, body, await service.renderer.prepare(_chat_request(body)), sampling)
    answers = service.answers(
        [prompt],
        [sampling],
        param="messages",
        priority=body.priority,
        salt=body.salt,
        timeout_s=body.timeout,
        ids=client_ids(body, 1),
    )
    reply = _Reply(service, body, prompt)
    deltas = answers.deltas()
    if body.stream:
        started = await begun(deltas)
        return OpenAIStream(reply.events(started, answers, UsagePolicy(body.stream_options)))
    return json_reply(reply.whole(await drained(deltas), answers, sampling.n))


def _num_logprobs(body: ChatFields) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if (body.top_logprobs or 0) > MAX_LOGPROBS:
        raise RequestError(f"top_logprobs is {body.top_logprobs}; at most {MAX_LOGPROBS}", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _chat_request(body: ChatFields) -> ChatRequest:
    variables = {**_thinking(body), **(body.chat_template_kwargs or {})}
    return ChatRequest(
        messages=body.messages,
        tools=tuple(body.tools or ()),
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        parse_reasoning=body.separate_reasoning is not False,
        template_variables=variables,
    )


def _thinking(body: ChatFields) -> dict[str, Any]:
    """Template variables that `thinking` and `reasoning_effort` stand for. Raises RequestError."""
    on = body.thinking
    if isinstance(on, dict):
        kind = reading.one_of("thinking.type", on.get("type"), ("enabled", "disabled", "adaptive"))
        on = kind != "disabled"
    if body.reasoning_effort is None:
        return thinking_variables(on)
    if body.reasoning_effort == "none":
        return thinking_variables(bool(on))
    return {**thinking_variables(on), "reasoning_effort": body.reasoning_effort}


class _Reply:
    """Writes one reply, streamed or whole."""

    def __init__(self, service: ModelService, body: ChatFields, prompt: Prompt) -> None:
        self._service = service
        self._body = body
        self._prompt = prompt
        self._num_top = body.top_logprobs or 0
        self._logprobs = bool(body.logprobs)
        ids = client_ids(body, 1)
        self._envelope = {
            "id": reply_id("" if ids else "chatcmpl-", next(iter(ids), None)),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": service.name,
        }

    async def events(self, deltas: Deltas, answers: Answers, policy: UsagePolicy) -> AsyncGenerator[bytes]:
        """The stream, without its [DONE]."""
        envelope = {**self._envelope, "object": "chat.completion.chunk"}
        begun_indices: set[int] = set()
        texts: dict[int, TextEvent] = {}
        plain = policy.constant and not (self._logprobs or self._body.return_token_ids)
        try:
            async for index, delta in deltas:
                if plain and delta.only_text and index in begun_indices:
                    if index not in texts:
                        texts[index] = self._text_event(envelope, index, policy, answers)
                    yield texts[index].of(delta.text)
                    continue
                opening = b""  # goes out with what follows it
                if index not in begun_indices:
                    begun_indices.add(index)
                    first = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                    made = {**envelope, **self._of_prompt([delta]), "choices": [first]}
                    opening = event(policy.on(made, answers.usage))
                if delta.empty and not (self._body.return_token_ids or delta.hidden is not None):
                    if opening:
                        yield opening
                    continue
                choice: dict[str, Any] = {
                    "index": index,
                    "delta": _message_delta(delta),
                    "finish_reason": delta.finish_reason,
                }
                if self._logprobs:
                    choice["logprobs"] = self._logprobs_object(delta.logprobs)
                if delta.matched_stop is not None:
                    choice["matched_stop"] = delta.matched_stop
                choice.update({**self._of_tokens([delta]), **_of_calls(delta)})
                yield opening + event(policy.on({**envelope, "choices": [choice]}, answers.usage))
            last = policy.last(envelope, answers.usage)
            if last is not None:
                yield event(last)
        finally:
            await deltas.aclose()

    def _text_event(self, envelope: dict[str, Any], index: int, policy: UsagePolicy, answers: Answers) -> TextEvent:
        """The event of an answer's delta that is only text."""

        def made(text: str) -> dict[str, Any]:
            choice = {
                "index": index, "delta": {"content": text}, "finish_reason": None, **self._of_tokens([]),
            }  # fmt: skip
            return policy.on({**envelope, "choices": [choice]}, answers.usage)

        return TextEvent(made)

    def whole(self, deltas: Sequence[tuple[int, OutputDelta]], answers: Answers, num_choices: int) -> dict[str, Any]:
        """The reply in one piece: the stream joined."""
        choices = [self._choice(index, [delta for at, delta in deltas if at == index]) for index in range(num_choices)]
        first = [delta for at, delta in deltas if at == 0]
        return {
            **self._envelope, **self._of_prompt(first), "choices": choices, "usage": usage_object(answers.usage)
        }  # fmt: skip

    def _of_prompt(self, deltas: Sequence[OutputDelta]) -> dict[str, Any]:
        """What was asked for of the prompt."""
        made: dict[str, Any] = {}
        if self._body.return_token_ids or self._body.return_prompt_token_ids:
            made["prompt_token_ids"] = self._prompt.token_ids
        if self._body.prompt_logprobs is not None:
            entries = prompt_logprobs_of(deltas)
            made["prompt_logprobs"] = shown_prompt_logprobs(self._service.tokenizer, entries)
        return made

    def _of_tokens(self, deltas: Sequence[OutputDelta]) -> dict[str, Any]:
        """What was asked for of the answer's tokens beside their text."""
        made: dict[str, Any] = {}
        if self._body.return_token_ids:
            made["token_ids"] = [token for delta in deltas for token in delta.token_ids]
        if self._body.return_hidden_states:
            made["hidden_states"] = hidden_of(deltas)
        return made

    def _choice(self, index: int, deltas: Sequence[OutputDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        reasoning = "".join(delta.reasoning for delta in deltas)
        calls = _joined(piece for delta in deltas for piece in delta.tool_calls)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        entries = [entry for delta in deltas for entry in delta.logprobs]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs_object(entries) if self._logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
            "matched_stop": deltas[-1].matched_stop,
            **self._of_tokens(deltas),
            **_of_calls(deltas[-1]),
        }

    def _logprobs_object(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        return chat_logprobs(self._service.tokenizer, entries, self._num_top)


def _of_calls(last: OutputDelta) -> dict[str, Any]:
    """What of an answer's calls does not fit the tools' schemas."""
    if not last.call_problems:
        return {}
    told = [{"index": p.index, "path": p.path, "message": p.message} for p in last.call_problems]
    return {"tool_call_problems": told}


def _message_delta(delta: OutputDelta) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if delta.text:
        made["content"] = delta.text
    if delta.reasoning:
        made["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        made["tool_calls"] = [_call_delta(piece) for piece in delta.tool_calls]
    return made


def _call_delta(piece: ToolCallPiece) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}}


def _joined(pieces: Any) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
        calls[piece.index]["function"]["arguments"] += piece.arguments
    return calls
