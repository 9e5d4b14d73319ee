"""EngineClient: what the doors (HTTP, command line, `LLM`) know of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.engine.messages import Extras, Hello, TopLogprobs
from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.prefix_cache import Namespace


@dataclass(slots=True)
class EngineRequest:
    """One sample of one prompt. prompt [n] int32. seed None draws one. The rest: see AddRequest.

    ended_by_text: set by the reader before it closes the stream because the text is complete (a stop string), so that
    metrics count a stop and not an abort.
    """

    prompt: npt.NDArray[np.int32]
    sampling: SamplingParams
    namespace: Namespace = field(default_factory=Namespace)
    priority: int = 0
    seed: int | None = None
    tenant: str = ""
    weight: float = 1.0
    timeout_s: float | None = None
    pooling: PoolingParams | None = None
    ended_by_text: bool = False


@dataclass(slots=True)
class TokenChunk:
    """Tokens of one request since the last chunk (a slow reader gets several steps at once).

    finish_reason: None while running, else "stop" | "length" | "abort" | "error" in the last chunk. "abort" with an
    `error` is the engine's own doing; without, somebody called `abort`.
    stop_token: the id that ended the text, if one did (it is the last of `tokens`).
    cached_tokens: prompt tokens served from the prefix cache, in the first chunk.
    extras: of the tokens of this chunk, one entry a step that gave some.
    """

    tokens: list[int]
    finish_reason: str | None = None
    stop_token: int | None = None
    cached_tokens: int | None = None
    logprobs: list[TopLogprobs] | None = None
    error: str | None = None
    extras: list[Extras] | None = None


class EngineClient(Protocol):
    """An engine, in this process or in a child."""

    async def start(self) -> Hello:
        """Start and wait until ready. Raises the CoreError that stopped it."""

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenChunk]:
        """Chunks until one has a finish_reason. Closing the iterator early (client gone, stop string found)
        cancels the request and frees what it held. Raises Overloaded at the first step if the queue is full,
        EngineDead if the engine dies meanwhile, RequestError if the engine refuses it."""

    async def stats(self) -> dict[str, float]:
        """Latest metric values."""

    async def flush_cache(self) -> None:
        """Forget cached prefixes. Raises EngineError while requests run."""

    async def control(self, op: str, *, timeout_s: float = 30.0, **arguments: Any) -> dict[str, Any]:
        """Have the engine do one of `core.engine.control.OPERATIONS`; what it gives back. Raises what the operation
        raises, EngineError if no answer comes in time, EngineDead if there is no engine."""

    def abort(self, names: Collection[str] | None = None) -> int:
        """End running requests: those of an HTTP request known by one of the names (RequestRecord), or all. Their last
        chunks hold what was not read yet and finish_reason "abort". Returns how many there were."""

    @property
    def paused(self) -> bool:
        """Whether the engine launches no steps because somebody paused it. A restart ends it."""

    @property
    def num_requests(self) -> int:
        """Requests that have not finished."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers of those requests."""

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""

    @property
    def alive(self) -> bool:
        """Liveness: the loop turns and, while there is work, steps progress."""

    async def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Let running requests finish (drain) up to the timeout, end the rest, leave no process behind."""
