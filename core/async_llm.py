"""`AsyncLLM`: a model behind an event loop, without HTTP. Its engine has a process of its own, as under `core serve`.

async with AsyncLLM("path/to/checkpoint") as llm:
    async for delta in llm.generate("Once upon a time", {"max_tokens": 20}):
        print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from core.config.loading import load_settings
from core.config.sections import Settings
from core.engine.environment import device_environment
from core.engine.process_client import ProcessClient
from core.frontend.chat import ChatRenderer, ChatRequest, Message, Prompt
from core.frontend.output import OutputDelta
from core.frontend.parameters import Dialect
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import EngineError, RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.parsers import Tool
from core.registry import Catalog
from core.registry.resolve import resolve
from core.server.context import ModelService
from core.server.loading import load_service
from core.server.prompts import make_prompts

Sampling = SamplingParams | Mapping[str, Any]


class AsyncLLM:
    """One model, any number of requests at once. To be used from one event loop, with `async with`, or `start` and
    `stop`."""

    def __init__(self, model: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        """As `LLM`: model: folder or name; None is the bundled default. settings: any setting by name.

        Raises ConfigError for an unknown or wrong setting.
        """
        given = {**settings, **({"model": os.fspath(model)} if model is not None else {})}
        self._settings: Settings = load_settings(given, os.environ, origin="argument").settings
        self._service: ModelService | None = None
        self._engine: ProcessClient | None = None

    async def start(self) -> None:
        """Start the engine and wait until it is ready. Raises the CoreError that stops it."""
        if self._engine is not None:
            raise EngineError("this AsyncLLM is started already")
        settings, catalog = self._settings, Catalog.scan()
        environment = device_environment(settings, catalog)
        resolution = resolve(settings, catalog)
        engine = ProcessClient(settings, msgspec.msgpack.encode(resolution.lock()), environment=environment)
        self._engine = engine
        name = settings.model.served_model_name or settings.model.model or resolution.checkpoint_choice.name
        loading = asyncio.create_task(asyncio.to_thread(load_service, settings, resolution, name))
        try:
            hello, service = await asyncio.gather(engine.start(), loading)
        except BaseException:
            loading.cancel()
            await self.stop()
            raise
        self._service = service(engine, hello)

    async def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        """End the engine's process; with `drain`, running requests finish first, up to the timeout. Idempotent."""
        engine, self._engine, self._service = self._engine, None, None
        if engine is not None:
            await engine.stop(drain, timeout_s)

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    @property
    def service(self) -> ModelService:
        """The running model. Raises EngineError before `start` and after `stop`."""
        if self._service is None:
            raise EngineError("this AsyncLLM is not running", hint="use it with `async with`, or call start()")
        return self._service

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.service.tokenizer

    @property
    def renderer(self) -> ChatRenderer:
        """What turns conversations into prompts."""
        return self.service.renderer

    async def generate(
        self,
        prompt: str | Sequence[int],
        sampling_params: Sampling | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[OutputDelta]:
        """Continue a text or token ids: deltas, the last of which has a finish_reason. Closing the generator cancels.

        sampling_params: SamplingParams, or a mapping with the native names. Raises RequestError naming the parameter,
        EngineDead if the engine dies meanwhile.
        """
        made = await make_prompts(self.service, prompt if isinstance(prompt, str) else list(prompt), "prompt")
        async for delta in self._run(made[0], sampling_params, Dialect.NATIVE, priority, cache_salt, timeout_s):
            yield delta

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: Sampling | None = None,
        *,
        tools: Sequence[Tool] = (),
        tool_choice: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[OutputDelta]:
        """Answer a conversation; the rest as in `generate`, without a limit of tokens by default."""
        request = ChatRequest(
            messages,
            tools=tuple(tools),
            tool_choice=tool_choice,
            continue_final_message=continue_final_message,
            template_variables=chat_template_kwargs or {},
        )
        prompt = await self.renderer.prepare(request)
        async for delta in self._run(prompt, sampling_params, Dialect.CHAT, priority, cache_salt, timeout_s):
            yield delta

    async def _run(
        self,
        prompt: Prompt,
        given: Sampling | None,
        dialect: Dialect,
        priority: int,
        salt: str,
        timeout_s: float | None,
    ) -> AsyncGenerator[OutputDelta]:
        service = self.service
        sampling = service.rules.read(given if given is not None else {}, dialect)
        if sampling.n != 1:
            raise RequestError(
                f"n is {sampling.n}; a stream gives one answer", param="n", hint="call it several times at once"
            )
        answers = service.answers(
            [prompt],
            [sampling],
            param="prompt",
            priority=priority,
            salt=salt,
            align_logprobs=False,
            timeout_s=timeout_s,
        )
        deltas = answers.deltas()
        try:
            async for _, delta in deltas:
                yield delta
        finally:
            await deltas.aclose()
