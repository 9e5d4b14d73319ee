"""What the routes share: passed to each of them, no globals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np

from core.config.sections import ServerSettings
from core.engine.client import EngineClient, EngineRequest
from core.engine.messages import Hello
from core.frontend.chat import ChatRenderer, Prompt
from core.frontend.parameters import Dialect, build
from core.frontend.pump import Answers
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import Namespace
from core.metrics.prometheus import ServerMetrics
from core.server.errors import NotReady

DEFAULT_MAX_TOKENS = {Dialect.CHAT: None, Dialect.COMPLETIONS: 16, Dialect.NATIVE: 128}


class Phase(StrEnum):
    """Where the server stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelService:
    """One model that answers. Exists once engine and tokenizer are ready.

    name: in replies. path: the checkpoint. hello: the engine's facts.
    defaults: sampling that the checkpoint recommends. facts: shown by /server_info and /model_info.
    """

    name: str
    path: str
    engine: EngineClient
    tokenizer: Tokenizer
    renderer: ChatRenderer
    hello: Hello
    defaults: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """Raises RequestError (404) if `name` is another model's."""
        if name is not None and name != self.name:
            raise RequestError(
                f"the model {name!r} does not exist; this server has {self.name!r}",
                param="model",
                code="model_not_found",
                status=404,
            )

    def sampling(
        self, given: Mapping[str, Any], dialect: Dialect, *, max_n: int, logprobs: int | None = None
    ) -> SamplingParams:
        """Request over checkpoint's recommendation over built-in default. Raises RequestError."""
        defaults = {**self.defaults, "max_tokens": DEFAULT_MAX_TOKENS[dialect]}
        sampling = build(given, dialect, defaults=defaults, logprobs=logprobs)
        sampling.check_vocabulary(self.hello.vocab_size)
        if sampling.n > max_n:
            raise RequestError(f"n is {sampling.n}; this server allows at most {max_n}", param="n")
        unknown_ends = [t for t in self.tokenizer.eos_token_ids if t not in self.hello.eos_token_ids]
        if unknown_ends and not sampling.ignore_eos:
            ends = tuple(dict.fromkeys((*sampling.stop_token_ids, *unknown_ends)))
            sampling = msgspec.structs.replace(sampling, stop_token_ids=ends)
        return sampling

    def check_length(self, num_prompt: int, sampling: SamplingParams, param: str = "messages") -> None:
        """Raises RequestError if prompt and answer do not fit the context."""
        limit = min(self.hello.max_prompt_tokens, self.hello.context_length - 1)
        total = num_prompt + (sampling.max_tokens or 1)
        if num_prompt > limit:
            told = f"the prompt has {num_prompt} tokens and this model takes at most {limit}"
        elif total > self.hello.context_length:
            told = (
                f"the prompt has {num_prompt} tokens and the answer may have {sampling.max_tokens}: "
                f"together {total}, and the context has {self.hello.context_length}"
            )
        else:
            return
        raise RequestError(told, param=param, code="context_length_exceeded", hint="shorten the prompt or max_tokens")

    def answers(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingParams],
        *,
        param: str,
        priority: int = 0,
        salt: str = "",
        align_logprobs: bool = True,
    ) -> Answers:
        """`n` answers to each prompt, one engine request each; nothing runs until they are iterated.

        sampling: one per prompt, all with the same n. Raises RequestError if one does not fit the context.
        """
        streams, stages = [], []
        for prompt, wanted in zip(prompts, sampling, strict=True):
            self.check_length(len(prompt.token_ids), wanted, param)
            tokens = np.asarray(prompt.token_ids, dtype=np.int32)
            single = msgspec.structs.replace(wanted, n=1)
            for sample in range(wanted.n):
                seed = None if wanted.seed is None else (wanted.seed + sample) % 2**63
                request = EngineRequest(tokens, single, Namespace(salt=salt), priority, seed)
                streams.append(self.engine.generate(request))
                stages.append(prompt.stage(single, align_logprobs=align_logprobs))
        total = sum(len(prompt.token_ids) for prompt in prompts)
        return Answers(streams, stages, total, samples=sampling[0].n)


@dataclass(slots=True)
class ServerContext:
    """The server's state. `service` is set once, when the model is ready.

    engine: known from the start, for liveness. problem: why the start failed, in words.
    """

    settings: ServerSettings
    metrics: ServerMetrics
    engine: EngineClient | None = None
    service: ModelService | None = None
    phase: Phase = Phase.STARTING
    problem: str = ""
    started_s: float = field(default_factory=time.monotonic)

    def ready_service(self) -> ModelService:
        """The model. Raises NotReady while there is none that takes requests."""
        if self.service is None or self.phase is Phase.STARTING:
            raise NotReady(self.problem or "the model is still loading", hint="ask /ready, and retry then")
        if self.phase is Phase.DRAINING:
            raise NotReady("the server is shutting down", hint="send the request to another server")
        return self.service
