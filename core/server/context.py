"""What the routes share: passed to each of them, no globals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from core.config.sections import ServerSettings
from core.engine.client import EngineClient, EngineRequest
from core.engine.messages import Hello
from core.frontend.chat import ChatRenderer, Prompt
from core.frontend.parameters import Dialect
from core.frontend.pooling import Pooler
from core.frontend.pump import Answers
from core.frontend.rules import RequestRules, samples
from core.frontend.tokenizer import Tokenizer
from core.hooks.metrics import PluginMetrics
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.pooling import PoolingPlan
from core.interfaces.prefix_cache import Namespace
from core.metrics.prometheus import ServerMetrics
from core.server.errors import NotReady
from core.server.tenants.engine import TenantEngine
from core.server.tenants.metrics import TenantMetrics
from core.server.tenants.table import TenantTable
from core.server.tenants.visit import default_priority
from core.tracing.record import reply_id


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
    defaults: sampling that the checkpoint recommends. facts: shown by /server_info and /model_info. plan: what the
    model gives beside text. rules: what is checked of every request.
    """

    name: str
    path: str
    engine: EngineClient
    tokenizer: Tokenizer
    renderer: ChatRenderer
    hello: Hello
    defaults: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    plan: PoolingPlan = field(default_factory=PoolingPlan)
    created: int = field(default_factory=lambda: int(time.time()))
    rules: RequestRules = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rules = RequestRules(
            vocab_size=self.hello.vocab_size,
            context_length=self.hello.context_length,
            max_prompt_tokens=self.hello.max_prompt_tokens,
            engine_eos=tuple(self.hello.eos_token_ids),
            tokenizer_eos=self.tokenizer.eos_token_ids,
            defaults=self.defaults,
        )
        object.__setattr__(self, "rules", rules)

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
        sampling = self.rules.sampling(given, dialect, logprobs=logprobs)
        if sampling.n > max_n:
            raise RequestError(f"n is {sampling.n}; this server allows at most {max_n}", param="n")
        return sampling

    @property
    def pooler(self) -> Pooler:
        """The model, asked for vectors and scores. A vector needs no room for a token behind the text."""
        limit = min(self.hello.context_length, self.hello.max_prompt_tokens + 1)
        return Pooler(self.plan, self.renderer, self.hello.vocab_size, limit)

    def answers(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingParams],
        *,
        param: str,
        priority: int | None = None,
        salt: str = "",
        align_logprobs: bool = True,
        timeout_s: float | None = None,
        ids: Sequence[str] = (),
    ) -> Answers:
        """`n` answers to each prompt, one engine request each; nothing runs until they are iterated.

        sampling: one per prompt, all with the same n. timeout_s: after which each ends with an error. ids: the client's
        own, one per prompt, for cancelling. priority: None is the key's own. Raises RequestError if one does not fit
        the context, or is more than its key allows.
        """
        if priority is None:
            priority = default_priority()
        for name in ids:
            reply_id(given=name)  # so that it can be aborted under this name
        rules, namespace = self.rules, Namespace(salt=salt)
        has_backend = self.hello.effective.get("grammar_backend", "none") != "none"
        requests, stages = [], []
        for prompt, wanted in zip(prompts, sampling, strict=True):
            rules.check_length(len(prompt.token_ids), wanted, param)
            wanted = prompt.constrained(wanted, has_backend)
            tokens = np.asarray(prompt.token_ids, dtype=np.int32)
            for single, seed in samples(wanted):
                requests.append(EngineRequest(tokens, single, namespace, priority, seed, timeout_s=timeout_s))
                stages.append(prompt.stage(single, align_logprobs=align_logprobs))
        total = sum(len(prompt.token_ids) for prompt in prompts)
        streams = [self.engine.generate(request) for request in requests]
        return Answers(streams, stages, total, samples=sampling[0].n, requests=requests)


@dataclass(slots=True)
class ServerContext:
    """The server's state. `service` is set once, when the model is ready.

    engine: known from the start, for liveness. problem: why the start failed, in words. plugin_metrics: what hook
    plugins add to /metrics. tenants: made from the settings; raises ConfigError if their file cannot be used.
    """

    settings: ServerSettings
    metrics: ServerMetrics
    engine: EngineClient | None = None
    service: ModelService | None = None
    phase: Phase = Phase.STARTING
    problem: str = ""
    plugin_metrics: PluginMetrics = field(default_factory=PluginMetrics)
    started_s: float = field(default_factory=time.monotonic)
    tenants: TenantTable = field(init=False)
    _limited: tuple[ModelService, ModelService] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tenants = TenantTable(self.settings)
        self.metrics.include(TenantMetrics(self.tenants))

    def ready_service(self) -> ModelService:
        """The model, behind its tenants' limits. Raises NotReady while there is none that takes requests."""
        if self.service is None or self.phase is Phase.STARTING:
            raise NotReady(self.problem or "the model is still loading", hint="ask /ready, and retry then")
        if self.phase is Phase.DRAINING:
            raise NotReady("the server is shutting down", hint="send the request to another server")
        if self._limited is None or self._limited[0] is not self.service:
            engine = TenantEngine.of(self.service.engine, self.settings, self.service.name)
            self._limited = (self.service, replace(self.service, engine=engine))
        return self._limited[1]
