"""`LLM`: whole batches in this process. No server, no event loop; the same parameters and texts as over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from core.config.loading import load_settings
from core.config.sections import Settings
from core.engine.client import EngineRequest, TokenChunk
from core.engine.environment import apply_environment, device_environment
from core.engine.offline import OfflineEngine
from core.frontend.chat import ChatRenderer, ChatRequest, Message, Prompt
from core.frontend.loading import load_renderer, recommended_sampling
from core.frontend.output import OutputDelta, OutputStage, PromptLogprob, TokenLogprob
from core.frontend.parameters import Dialect
from core.frontend.rules import RequestRules, samples
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.parsers import Tool
from core.llm_pooling import PoolingMethods
from core.metrics.loading import LoadingBar
from core.registry import Catalog
from core.registry.resolve import resolve

Sampling = SamplingParams | Mapping[str, Any]
PromptLike = str | Sequence[int]
OnDelta = Callable[[int, OutputDelta], None]


@dataclass(slots=True)
class ToolCall:
    """A whole tool call; `arguments` is JSON text as the model wrote it. problems: what of them does not fit the tool's
    schema, as in "$.days is missing"."""

    id: str
    name: str
    arguments: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Completion:
    """One answer. finish_reason: "stop" | "length" | "tool_calls" | "error" (then `error` says why).

    logprobs: one per token, if asked for. matched_stop: the id or string that ended the text. reasoning_tokens: of
    token_ids, those before the answer proper. hidden_states [n, hidden_size]: where asked for.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None
    reasoning_tokens: int = 0
    hidden_states: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class RequestOutput:
    """What one prompt gave. cached_tokens: prompt tokens that the prefix cache served. prompt_logprobs: one per prompt
    token, if asked for. The properties are those of the first completion; with n > 1 the others are in `completions`.
    """

    prompt: str
    prompt_token_ids: list[int]
    completions: list[Completion]
    cached_tokens: int = 0
    prompt_logprobs: list[PromptLogprob] | None = None

    @property
    def text(self) -> str:
        return self.completions[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.completions[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.completions[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.completions[0].logprobs


class LLM(PoolingMethods):
    """A model in this process.

    >>> llm = LLM("path/to/checkpoint", context_length=4096)
    >>> llm.generate(["Once upon a time"], {"max_tokens": 20})[0].text
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        """model: folder or name; None is the bundled default. settings: any setting by name, as on the command line
        (`context_length=4096`, `plugins={"NAME": {"key": 1}}`). Environment variables count as they do there.

        Raises ConfigError for an unknown or wrong setting, and whatever stops the engine's start.
        """
        given = {**settings, **({"model": os.fspath(model)} if model is not None else {})}
        self._start(load_settings(given, os.environ, origin="argument").settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> LLM:
        """An LLM from settings that are loaded already. Raises whatever stops the engine's start."""
        made = cls.__new__(cls)
        made._start(settings)
        return made

    def _start(self, settings: Settings) -> None:
        settings = settings.for_throughput()
        catalog = Catalog.scan()
        apply_environment(device_environment(settings, catalog), settings.engine.device)
        from core.engine.build import build_engine  # with it comes torch, which reads what has just been set

        resolution = resolve(settings, catalog)
        renderer = load_renderer(
            settings.model,
            resolution.checkpoint,
            resolution.parser_factory(resolution.tool_parser),
            resolution.parser_factory(resolution.reasoning_parser),
        )
        with LoadingBar() as progress:
            engine = build_engine(settings, resolution, progress, tokenizer=renderer.tokenizer)
        self._engine = OfflineEngine(engine, settings.engine.random_seed)
        self._plan = resolution.pooling
        self._prepare(renderer)

    @classmethod
    def from_engine(cls, engine: OfflineEngine, renderer: ChatRenderer) -> LLM:
        """An LLM over an engine that is built already."""
        made = cls.__new__(cls)
        made._engine = engine
        made._prepare(renderer)
        return made

    def _prepare(self, renderer: ChatRenderer) -> None:
        hello = self._engine.engine.hello
        self._renderer = renderer
        self._rules = RequestRules(
            vocab_size=hello.vocab_size,
            context_length=hello.context_length,
            max_prompt_tokens=hello.max_prompt_tokens,
            engine_eos=tuple(hello.eos_token_ids),
            tokenizer_eos=renderer.tokenizer.eos_token_ids,
            defaults=recommended_sampling(renderer.tokenizer),
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._renderer.tokenizer

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: Sampling | Sequence[Sampling] | None = None,
        *,
        progress: bool = False,
        on_delta: OnDelta | None = None,
    ) -> list[RequestOutput]:
        """Continue texts or token ids; one output per prompt, in order.

        sampling_params: one for all or one per prompt; SamplingParams, or a mapping with the native names.
        progress: show a bar on stderr. on_delta(index, delta): called with each piece of each answer as it comes,
        answers counted over all prompts and samples. Raises RequestError naming prompts[i] or the parameter.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        items: list[Any] = [prompts] if single else list(prompts)
        made = [self._raw_prompt(f"prompts[{index}]", item) for index, item in enumerate(items)]
        return self._run(made, self._sampling(sampling_params, len(made), Dialect.NATIVE), progress, on_delta)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Sampling | Sequence[Sampling] | None = None,
        *,
        tools: Sequence[Tool] = (),
        tool_choice: Any = None,
        parallel_tool_calls: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        progress: bool = False,
        on_delta: OnDelta | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; the rest as in `generate`, without a limit of tokens by default.
        tool_choice, parallel_tool_calls: as over HTTP."""
        one = not messages or isinstance(messages[0], Mapping)
        chats: list[Any] = [messages] if one else list(messages)
        made = [
            self._renderer.prepare_now(
                ChatRequest(
                    chat,
                    tools=tuple(tools),
                    tool_choice=tool_choice,
                    parallel_tool_calls=parallel_tool_calls,
                    continue_final_message=continue_final_message,
                    template_variables=chat_template_kwargs or {},
                )
            )
            for chat in chats
        ]
        return self._run(made, self._sampling(sampling_params, len(made), Dialect.CHAT), progress, on_delta)

    def close(self) -> None:
        """Give back what the engine holds. The LLM answers nothing after it."""
        self._engine.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _raw_prompt(self, where: str, item: Any) -> Prompt:
        text = item if isinstance(item, str) else ""
        ids = self.tokenizer.encode(item) if isinstance(item, str) else [int(token) for token in item]
        if not ids:
            raise RequestError(f"{where} is empty", param=where)
        wrong = next((token for token in ids if not 0 <= token < self._rules.vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"{where} holds {wrong}; token ids are below the vocabulary size {self._rules.vocab_size}", param=where
            )
        return Prompt(text, ids, self.tokenizer)

    def _sampling(
        self, given: Sampling | Sequence[Sampling] | None, num_prompts: int, dialect: Dialect
    ) -> list[SamplingParams]:
        listed = list(given) if isinstance(given, Sequence) else [given if given is not None else {}] * num_prompts
        if len(listed) != num_prompts:
            raise RequestError(
                f"sampling_params lists {len(listed)} for {num_prompts} prompts", param="sampling_params"
            )
        return [self._rules.read(item, dialect) for item in listed]

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingParams],
        progress: bool,
        on_delta: OnDelta | None,
    ) -> list[RequestOutput]:
        requests: list[EngineRequest] = []
        stages: list[OutputStage] = []
        outputs: list[RequestOutput] = []
        owners: list[RequestOutput] = []
        completions: list[Completion] = []
        has_backend = self._engine.engine.hello.effective.get("grammar_backend", "none") != "none"
        for index, (prompt, wanted) in enumerate(zip(prompts, sampling, strict=True)):
            self._rules.check_length(len(prompt.token_ids), wanted, f"prompts[{index}]")
            wanted = prompt.constrained(wanted, has_backend)
            tokens = np.asarray(prompt.token_ids, dtype=np.int32)
            output = RequestOutput(prompt.text, prompt.token_ids, [])
            outputs.append(output)
            for single, seed in samples(wanted):
                completion = Completion(logprobs=None if wanted.logprobs is None else [])
                output.completions.append(completion)
                completions.append(completion)
                owners.append(output)
                requests.append(EngineRequest(tokens, single, seed=seed))
                stages.append(prompt.stage(single, align_logprobs=False))

        def take(index: int, chunk: TokenChunk) -> bool:
            if stages[index].finished:
                return True
            if chunk.cached_tokens is not None and completions[index] is owners[index].completions[0]:
                owners[index].cached_tokens = chunk.cached_tokens
            delta = _add(completions[index], stages[index], chunk)
            if delta.prompt_logprobs is not None and completions[index] is owners[index].completions[0]:
                owners[index].prompt_logprobs = (owners[index].prompt_logprobs or []) + delta.prompt_logprobs
            if on_delta is not None and not delta.empty:
                on_delta(index, delta)
            if completions[index].finish_reason is not None:
                advance()
            return stages[index].finished

        with _bar(len(requests), progress) as advance:
            self._engine.generate(requests, take)
        return outputs


def _add(completion: Completion, stage: OutputStage, chunk: TokenChunk) -> OutputDelta:
    delta = stage.feed(chunk)
    completion.text += delta.text
    completion.reasoning += delta.reasoning
    completion.token_ids += delta.token_ids
    completion.reasoning_tokens += delta.reasoning_tokens
    if delta.hidden is not None:
        before = [] if completion.hidden_states is None else [completion.hidden_states]
        completion.hidden_states = np.concatenate([*before, delta.hidden])
    if completion.logprobs is not None:
        completion.logprobs += delta.logprobs
    for piece in delta.tool_calls:
        if piece.name is not None:
            completion.tool_calls.append(ToolCall(piece.id or "", piece.name))
        completion.tool_calls[piece.index].arguments += piece.arguments
    for problem in delta.call_problems:
        completion.tool_calls[problem.index].problems.append(f"{problem.path} {problem.message}")
    if delta.finish_reason is not None:
        completion.finish_reason, completion.matched_stop = delta.finish_reason, delta.matched_stop
        completion.error = delta.error
    return delta


class _bar:  # noqa: N801 - used like a function
    """Context manager that gives a function to call once per finished request."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total = total
        self._shown = shown
        self._progress: Any = None

    def __enter__(self) -> Callable[[], None]:
        if not self._shown:
            return lambda: None
        from rich.console import Console
        from rich.progress import BarColumn as Bar
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("requests"), Bar(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)
        )
        self._progress.start()
        task = self._progress.add_task("requests", total=self._total)
        return lambda: self._progress.advance(task)

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()
