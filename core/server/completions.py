"""/v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.chat import Prompt
from core.frontend.infill import infill, infill_markers
from core.frontend.output import OutputDelta
from core.frontend.parameters import Dialect
from core.frontend.processors import with_processors
from core.frontend.pump import Answers
from core.frontend.structured import with_grammar
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.server import bodies
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
from core.server.prompts import as_list, make_prompts
from core.server.replies import OpenAIStream, TextEvent, event, json_reply, while_connected
from core.server.routing import RequestRoute
from core.server.schemas import CompletionBody, CompletionFields
from core.server.usage import Source, UsagePolicy, begun, drained, legacy_logprobs, usage_object
from core.tracing.record import reply_id


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/v1/completions", **described(CompletionBody, "Continue a text"))
    async def completions(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, CompletionBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(ctx, service, body))

    return router


async def _answer(ctx: ServerContext, service: ModelService, body: CompletionFields) -> Response:
    service.check_model(body.model)
    asked = _asked(ctx, service, body)
    prompts = [truncated(service, body, prompt, asked.sampling) for prompt in await _prompts(service, body)]
    answers = service.answers(
        prompts,
        [asked.sampling] * len(prompts),
        param="prompt",
        priority=body.priority,
        salt=body.salt,
        timeout_s=body.timeout,
        ids=client_ids(body, len(prompts)),
    )
    reply = _Reply(service, body, prompts, asked)
    deltas = answers.deltas()
    if body.stream:
        started = await begun(deltas)
        return OpenAIStream(reply.events(started, answers, UsagePolicy(body.stream_options)))
    return json_reply(reply.whole(await drained(deltas), answers))


@dataclass(frozen=True, slots=True)
class _Asked:
    """sampling: of each prompt, n samples of which `num_shown` are shown. prompt_only: the answer, of which the engine
    needs a token, is not shown at all (max_tokens 0)."""

    sampling: SamplingParams
    num_shown: int
    prompt_only: bool


def _asked(ctx: ServerContext, service: ModelService, body: CompletionFields) -> _Asked:
    given = body.given()
    prompt_only = given.get("max_tokens") == 0 and bool(body.echo)
    if prompt_only:
        given["max_tokens"] = 1
    sampling = service.sampling(given, Dialect.COMPLETIONS, max_n=ctx.settings.max_n, logprobs=body.logprobs)
    sampling = with_processors(with_grammar(sampling, given), given)
    num_shown, best_of = sampling.n, body.best_of
    if best_of is not None and best_of != sampling.n:
        if best_of < sampling.n:
            raise RequestError(f"best_of is {best_of}, less than n, which is {sampling.n}", param="best_of")
        if best_of > ctx.settings.max_n:
            raise RequestError(
                f"best_of is {best_of}; this server allows at most {ctx.settings.max_n}", param="best_of"
            )
        if body.stream:
            raise RequestError(
                "best_of above n cannot be streamed: which answers are best is known at the end", param="best_of"
            )
        sampling = msgspec.structs.replace(sampling, n=best_of, logprobs=sampling.logprobs or 0)
    of_prompt = all_vocabulary_refused(body.prompt_logprobs)
    if of_prompt is None and body.echo:
        of_prompt = body.logprobs
    return _Asked(with_prompt(body, sampling, of_prompt), num_shown, prompt_only)


async def _prompts(service: ModelService, body: CompletionFields) -> list[Prompt]:
    if not body.suffix:
        return await make_prompts(service, body.prompt, "prompt", body.add_special_tokens is not False)
    markers = infill_markers(service.tokenizer)
    if markers is None:
        raise RequestError(
            "suffix is given, but this model's tokenizer has no markers for filling in",
            param="suffix",
            code="unsupported_parameter",
            hint="leave suffix out, or serve a model that was trained to fill in",
        )
    texts = as_list(body.prompt)
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("suffix needs prompts as text", param="prompt")
    return [Prompt(text, infill(service.tokenizer, markers, text, body.suffix), service.tokenizer) for text in texts]


class _Reply:
    """Writes one reply, streamed or whole. Choice i belongs to prompt i // num_shown."""

    def __init__(self, service: ModelService, body: CompletionFields, prompts: Sequence[Prompt], asked: _Asked) -> None:
        self._service = service
        self._body = body
        self._asked = asked
        self._prompts = prompts
        self._echo = [self._shown(prompt) if body.echo else "" for prompt in prompts]
        ids = client_ids(body, len(prompts))
        own = [reply_id(given=name) for name in ids]
        self._envelope = {
            "id": own[0] if len(own) == 1 else reply_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
        }

    def _shown(self, prompt: Prompt) -> str:
        return prompt.text or self._service.tokenizer.decode(prompt.token_ids)

    async def events(
        self, deltas: Source[tuple[int, OutputDelta]], answers: Answers, policy: UsagePolicy
    ) -> AsyncGenerator[bytes]:
        """The stream, without its [DONE]."""
        started: set[int] = set()
        texts: dict[int, TextEvent] = {}
        body = self._body
        plain = policy.constant and body.logprobs is None and not (body.return_token_ids or self._asked.prompt_only)
        try:
            async for index, delta in deltas:
                if plain and delta.only_text and index in started:
                    if index not in texts:
                        texts[index] = self._text_event(index, policy, answers)
                    yield texts[index].of(delta.text)
                    continue
                first = index not in started
                wanted = self._body.return_token_ids or delta.hidden is not None or (first and self._body.echo)
                if delta.empty and not wanted:
                    continue
                started.add(index)
                made = {**self._envelope, "choices": [self._choice(index, [delta], first)]}
                yield event(policy.on(made, answers.usage))
            last = policy.last(self._envelope, answers.usage)
            if last is not None:
                yield event(last)
        finally:
            await deltas.aclose()

    def _text_event(self, index: int, policy: UsagePolicy, answers: Answers) -> TextEvent:
        """The event of an answer's delta that is only text."""

        def made(text: str) -> dict[str, Any]:
            choice = self._choice(index, [OutputDelta(text)], False)
            return policy.on({**self._envelope, "choices": [choice]}, answers.usage)

        return TextEvent(made)

    def whole(self, deltas: Sequence[tuple[int, OutputDelta]], answers: Answers) -> dict[str, Any]:
        """The reply in one piece: the stream joined, and of each prompt's answers the likeliest if there are more than
        asked for."""
        drawn, shown = self._asked.sampling.n, self._asked.num_shown
        by_index: list[list[OutputDelta]] = [[] for _ in range(len(self._prompts) * drawn)]
        for index, delta in deltas:
            by_index[index].append(delta)
        choices: list[dict[str, Any]] = []
        for start in range(0, len(by_index), drawn):
            own = by_index[start : start + drawn]
            if shown < drawn:
                own = sorted(own, key=_mean_logprob, reverse=True)[:shown]
            choices += [self._choice(len(choices) + i, answer, True) for i, answer in enumerate(own)]
        return {**self._envelope, "choices": choices, "usage": usage_object(answers.usage)}

    def _choice(self, index: int, deltas: Sequence[OutputDelta], first: bool) -> dict[str, Any]:
        at, body, tokenizer = index // self._asked.num_shown, self._body, self._service.tokenizer
        prompt, echo = self._prompts[at], self._echo[at]
        answer = [] if self._asked.prompt_only else deltas
        choice: dict[str, Any] = {
            "index": index,
            "text": (echo if first else "") + "".join(delta.text for delta in answer),
            "logprobs": None,
            "finish_reason": "length" if self._asked.prompt_only else deltas[-1].finish_reason,
            "matched_stop": None if self._asked.prompt_only else deltas[-1].matched_stop,
        }
        of_prompt = prompt_logprobs_of(deltas)
        if body.logprobs is not None:
            entries = [entry for delta in answer for entry in delta.logprobs]
            before = of_prompt if body.echo else []
            choice["logprobs"] = legacy_logprobs(tokenizer, entries, body.logprobs, len(echo), before)
        if body.prompt_logprobs is not None and of_prompt:
            choice["prompt_logprobs"] = shown_prompt_logprobs(tokenizer, of_prompt)
        if body.return_token_ids:
            choice["token_ids"] = [token for delta in answer for token in delta.token_ids]
        if first and (body.return_token_ids or body.return_prompt_token_ids):
            choice["prompt_token_ids"] = prompt.token_ids
        if body.return_hidden_states:
            choice["hidden_states"] = hidden_of(deltas)
        return choice


def _mean_logprob(deltas: Sequence[OutputDelta]) -> float:
    """Log-probability a token, by which answers of different length compare."""
    values = [entry.logprob for delta in deltas for entry in delta.logprobs]
    return sum(values) / len(values) if values else 0.0
