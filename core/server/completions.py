"""/v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.chat import Prompt
from core.frontend.output import OutputDelta
from core.frontend.parameters import Dialect
from core.frontend.pump import Answers
from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.context import ModelService, ServerContext
from core.server.openapi import described
from core.server.prompts import make_prompts
from core.server.replies import EventStream, event, guarded, json_reply, while_connected
from core.server.schemas import CompletionBody, CompletionFields
from core.server.usage import UsagePolicy, begun, drained, legacy_logprobs, usage_object
from core.tracing.record import reply_id


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter()

    @router.post("/v1/completions", **described(CompletionBody, "Continue a text"))
    async def completions(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, CompletionBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(ctx, service, body))

    return router


async def _answer(ctx: ServerContext, service: ModelService, body: CompletionFields) -> Response:
    service.check_model(body.model)
    body.refuse_unsupported()
    _refuse_legacy(body)
    sampling = service.sampling(body.given(), Dialect.COMPLETIONS, max_n=ctx.settings.max_n, logprobs=body.logprobs)
    if body.best_of is not None and body.best_of != sampling.n:
        raise RequestError(f"best_of is {body.best_of}; only best_of equal to n is supported", param="best_of")
    prompts = await make_prompts(service, body.prompt, "prompt", body.add_special_tokens is not False)
    answers = service.answers(
        prompts, [sampling] * len(prompts), param="prompt", priority=body.priority or 0, salt=body.cache_salt or ""
    )
    reply = _Reply(service, body, prompts, sampling.n)
    deltas = answers.deltas()
    if body.stream:
        started = await begun(deltas)
        return EventStream(guarded(reply.events(started, answers, UsagePolicy(body.stream_options))))
    return json_reply(reply.whole(await drained(deltas), answers))


def _refuse_legacy(body: CompletionFields) -> None:
    if body.suffix:
        raise RequestError("suffix is not supported by this model", param="suffix", code="unsupported_parameter")
    if body.echo and body.logprobs is not None:
        raise RequestError(
            "logprobs of the prompt are not supported yet: use echo without logprobs, or logprobs without echo",
            param="echo",
            code="unsupported_parameter",
        )


class _Reply:
    """Writes one reply, streamed or whole. Choice i belongs to prompt i // n."""

    def __init__(self, service: ModelService, body: CompletionFields, prompts: Sequence[Prompt], n: int) -> None:
        self._service = service
        self._num_top = body.logprobs
        self._num_choices = len(prompts) * n
        self._echo = [self._shown(prompts[index // n]) if body.echo else "" for index in range(self._num_choices)]
        self._envelope = {
            "id": reply_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
        }

    def _shown(self, prompt: Prompt) -> str:
        return prompt.text or self._service.tokenizer.decode(prompt.token_ids)

    async def events(
        self, deltas: AsyncGenerator[tuple[int, OutputDelta]], answers: Answers, policy: UsagePolicy
    ) -> AsyncGenerator[bytes]:
        """The stream, without its [DONE]."""
        echo = list(self._echo)
        try:
            async for index, delta in deltas:
                if delta.empty and not echo[index]:
                    continue
                choice = self._choice(index, echo[index] + delta.text, [delta])
                echo[index] = ""
                yield event(policy.on({**self._envelope, "choices": [choice]}, answers.usage))
            last = policy.last(self._envelope, answers.usage)
            if last is not None:
                yield event(last)
        finally:
            await deltas.aclose()

    def whole(self, deltas: Sequence[tuple[int, OutputDelta]], answers: Answers) -> dict[str, Any]:
        """The reply in one piece: the stream joined."""
        by_index: list[list[OutputDelta]] = [[] for _ in range(self._num_choices)]
        for index, delta in deltas:
            by_index[index].append(delta)
        choices = [
            self._choice(index, self._echo[index] + "".join(delta.text for delta in own), own)
            for index, own in enumerate(by_index)
        ]
        return {**self._envelope, "choices": choices, "usage": usage_object(answers.usage)}

    def _choice(self, index: int, text: str, deltas: Sequence[OutputDelta]) -> dict[str, Any]:
        logprobs = None
        if self._num_top is not None:
            entries = [entry for delta in deltas for entry in delta.logprobs]
            logprobs = legacy_logprobs(self._service.tokenizer, entries, self._num_top, len(self._echo[index]))
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": deltas[-1].finish_reason,
            "matched_stop": deltas[-1].matched_stop,
        }
