"""/generate, the native route: text or token ids, one or many, with the engine's own view of the answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.chat import Prompt
from core.frontend.output import OutputDelta, PromptLogprob, TokenLogprob
from core.frontend.parameters import Dialect, spellings
from core.frontend.processors import FIELDS as PROCESSORS
from core.frontend.processors import with_processors
from core.frontend.pump import Answers
from core.frontend.structured import FIELDS, with_grammar
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.server import bodies
from core.server.asked import client_ids, hidden_of, truncated, with_prompt
from core.server.context import ModelService, ServerContext
from core.server.fields import FieldRule
from core.server.openapi import described
from core.server.prompts import make_prompts
from core.server.replies import OpenAIStream, event, json_reply, while_connected
from core.server.routing import RequestRoute
from core.server.schemas import GenerateBody
from core.server.usage import Source, begun
from core.tracing.record import reply_id


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.post("/generate", **described(GenerateBody, "Continue prompts"))
    @router.put("/generate", include_in_schema=False)
    async def generate(request: Request) -> Response:
        service = ctx.ready_service()
        body = await bodies.read(request, GenerateBody, ctx.settings.max_body_bytes)
        return await while_connected(request, _answer(request, ctx, service, body))

    return router


async def _answer(request: Request, ctx: ServerContext, service: ModelService, body: GenerateBody) -> Response:
    prompts, single = await _prompts(service, body)
    sampling, ignored = _sampling(ctx, service, body, len(prompts), bodies.field_rule(request))
    bodies.ignore(request, ignored)
    prompts = [truncated(service, body, prompt, own) for prompt, own in zip(prompts, sampling, strict=True)]
    answers = service.answers(
        prompts,
        sampling,
        param="text" if body.text is not None else "input_ids",
        priority=body.priority,
        salt=body.salt,
        align_logprobs=False,
        timeout_s=body.timeout,
        ids=client_ids(body, len(prompts)),
    )
    results = _results(service, body, prompts, sampling)
    single = single and sampling[0].n == 1
    deltas = answers.deltas()
    if body.stream:
        started = await begun(deltas)
        return OpenAIStream(_events(started, answers, results, single))
    async for index, delta in deltas:
        results[index].take(delta)
    made = [result.shown() for result in results]
    return json_reply(made[0] if single else made)


async def _prompts(service: ModelService, body: GenerateBody) -> tuple[list[Prompt], bool]:
    """(prompts, whether the request named just one)."""
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("give either text or input_ids", param="text")
    name, given = ("text", body.text) if body.text is not None else ("input_ids", body.input_ids)
    single = isinstance(given, str) or bool(given and isinstance(given[0], int))
    return await make_prompts(service, given, name), single


def _sampling(
    ctx: ServerContext, service: ModelService, body: GenerateBody, num_prompts: int, rule: FieldRule
) -> tuple[list[SamplingParams], list[str]]:
    """(parameters of each prompt, names in them that count for nothing)."""
    given = body.sampling_params or {}
    listed = given if isinstance(given, list) else [given] * num_prompts
    if len(listed) != num_prompts:
        raise RequestError(f"sampling_params lists {len(listed)} for {num_prompts} prompts", param="sampling_params")
    known = {**spellings(Dialect.NATIVE), **FIELDS, **dict.fromkeys(PROCESSORS)}
    logprobs = (body.top_logprobs_num or 0) if body.return_logprob else None
    start = body.logprob_start_len if body.logprob_start_len is not None and body.return_logprob else -1
    of_prompt = logprobs if start >= 0 else None
    made: list[SamplingParams] = []
    ignored: list[str] = []
    for values in listed:
        others = {f"sampling_params.{name}": value for name, value in values.items() if name not in known}
        ignored += rule.judge(others, {f"sampling_params.{name}": None for name in known}, "/generate")
        sampling = service.sampling(values, Dialect.NATIVE, max_n=ctx.settings.max_n, logprobs=logprobs)
        every = {**body.given(), **values}
        sampling = with_processors(with_grammar(sampling, every), every)
        made.append(with_prompt(body, sampling, of_prompt, max(start, 0)))
    if len({sampling.n for sampling in made}) > 1:
        raise RequestError("n must be the same for all prompts of a request", param="n")
    return made, list(dict.fromkeys(ignored))


def _results(
    service: ModelService, body: GenerateBody, prompts: Sequence[Prompt], sampling: Sequence[SamplingParams]
) -> list[_Result]:
    n = sampling[0].n
    ids = client_ids(body, len(prompts))
    return [
        _Result(service, body, prompt, reply_id(given=ids[at] if ids else None))
        for at, prompt in enumerate(prompts)
        for _ in range(n)
    ]


async def _events(
    deltas: Source[tuple[int, OutputDelta]], answers: Answers, results: list[_Result], single: bool
) -> AsyncGenerator[bytes]:
    try:
        async for index, delta in deltas:
            results[index].take(delta)
            shown = results[index].shown()
            yield event(shown if single else {**shown, "index": index})
    finally:
        await deltas.aclose()


class _Result:
    """One answer, growing."""

    def __init__(self, service: ModelService, body: GenerateBody, prompt: Prompt, request_id: str) -> None:
        self._service = service
        self._body = body
        self._prompt = prompt
        self._id = request_id
        self._start = time.perf_counter()
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[PromptLogprob] = []
        self._hidden: list[list[float]] = []
        self._reasoning_tokens = 0
        self._cached = 0
        self._finish: dict[str, Any] | None = None

    def take(self, delta: OutputDelta) -> None:
        """Add a delta."""
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs
        self._prompt_logprobs += delta.prompt_logprobs or ()
        self._hidden += hidden_of([delta])
        self._reasoning_tokens += delta.reasoning_tokens
        if delta.cached_tokens is not None:
            self._cached = delta.cached_tokens
        if delta.finish_reason == "length":
            self._finish = {"type": "length", "length": len(self._token_ids)}
        elif delta.finish_reason == "abort":
            self._finish = {"type": "abort", "message": "the request was aborted"}
        elif delta.finish_reason is not None:
            self._finish = {"type": delta.finish_reason, "matched": delta.matched_stop}

    def shown(self) -> dict[str, Any]:
        """All of it so far."""
        meta: dict[str, Any] = {
            "id": self._id,
            "finish_reason": self._finish,
            "prompt_tokens": len(self._prompt.token_ids),
            "completion_tokens": len(self._token_ids),
            "cached_tokens": self._cached,
            "e2e_latency": time.perf_counter() - self._start,
        }
        if self._body.return_prompt_token_ids:
            meta["prompt_token_ids"] = self._prompt.token_ids
        if self._body.return_hidden_states:
            meta["hidden_states"] = self._hidden
        if self._body.return_logprob:
            if (self._body.logprob_start_len or 0) >= 0 and self._body.logprob_start_len is not None:
                meta["input_token_logprobs"] = [self._entry(e.token, e.logprob) for e in self._prompt_logprobs]
                if self._body.top_logprobs_num:
                    meta["input_top_logprobs"] = [
                        None if e.logprob is None else [self._entry(*pair) for pair in e.top]
                        for e in self._prompt_logprobs
                    ]
            meta["output_token_logprobs"] = [self._entry(e.token, e.logprob) for e in self._logprobs]
            if self._body.top_logprobs_num:
                meta["output_top_logprobs"] = [[self._entry(*pair) for pair in e.top] for e in self._logprobs]
        text = "".join(self._texts)
        self._texts = [text]
        return {"text": text, "output_ids": self._token_ids, "meta_info": meta}

    def _entry(self, token: int, logprob: float | None) -> list[Any]:
        named = self._service.tokenizer.piece(token)[0] if self._body.return_text_in_logprobs else None
        return [logprob, token, named]
