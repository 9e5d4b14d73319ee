"""Access: what a plugin's routes may do with the server (core.interfaces.routes.ServerAccess)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from core.frontend.chat import ChatRequest
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.routes import GeneratedText
from core.server.context import ServerContext
from core.server.guard import begun_generations
from core.server.prompts import make_prompts


class Access:
    """See ServerAccess. All but the first two raise NotReady (503) while the model loads or the server drains."""

    def __init__(self, ctx: ServerContext, model_name: str, effective: Mapping[str, str]) -> None:
        self._ctx = ctx
        self._model_name = model_name
        self._effective = MappingProxyType(dict(effective))

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def effective(self) -> Mapping[str, str]:
        return self._effective

    def encode(self, text: str) -> list[int]:
        return self._ctx.ready_service().tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        return self._ctx.ready_service().tokenizer.decode(token_ids)

    def render_chat(self, messages: list[Mapping[str, Any]], tools: list[Mapping[str, Any]] | None = None) -> list[int]:
        request = ChatRequest(messages, tools=tuple(tools or ()))
        return self._ctx.ready_service().renderer.prepare_now(request).token_ids

    def generate(self, prompt: str | list[int], params: SamplingParams) -> AsyncGenerator[GeneratedText]:
        pieces = self._generate(prompt, params)
        begun = begun_generations.get()
        if begun is not None:
            begun.append(pieces)
        return pieces

    async def _generate(self, prompt: str | list[int], params: SamplingParams) -> AsyncGenerator[GeneratedText]:
        service = self._ctx.ready_service()
        if params.n != 1:
            raise RequestError(f"n is {params.n}; a route generates one answer at a time", param="n")
        made = await make_prompts(service, [prompt], "prompt")
        sampling = service.rules.completed(msgspec.structs.replace(params, logprobs=None))
        answers = service.answers(made, [sampling], param="prompt", align_logprobs=False)
        deltas = answers.deltas()
        try:
            async for _, delta in deltas:
                usage = answers.usage
                yield GeneratedText(delta.text, delta.finish_reason, usage.prompt_tokens, usage.completion_tokens)
        finally:
            await deltas.aclose()
