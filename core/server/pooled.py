"""What the routes for vectors and scores share: bodies, texts, and waiting for the engine."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from core.engine.client import EngineRequest, TokenChunk
from core.frontend.pooling import Job, Jobs, TextOrIds, Truncation, Vector
from core.frontend.tokenizer import INLINE_CHARACTERS
from core.interfaces.errors import EngineDead, EngineError, RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import Namespace
from core.server.context import ModelService
from core.server.tenants.visit import default_priority

T = TypeVar("T")
MAX_TEXTS = 2048  # in one request, as OpenAI allows
WINDOW = 128  # of these, how many the engine has at once: one request does not fill its queue
# One text or many, each as text or as ids. fail_fast: what is no list of texts is not so once for each of its ids,
# which took a second for a million.
Given = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | Annotated[list[int], Field(fail_fast=True)]
    | Annotated[list[list[int]], Field(fail_fast=True)]
)


class PooledBody(BaseModel):
    """What all requests for vectors and scores share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = Field(None, description="The served model's name; may be left out.")
    user: str | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="Higher runs earlier.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of equal salt.")
    extra_key: str | None = Field(None, description="Another name of cache_salt; both together count as one.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which the request ends with an error.")
    truncate_prompt_tokens: int | None = Field(
        None, description="Cut longer texts to so many tokens; -1: to what the model takes. Default: they are refused."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="Which end is cut: right (default) keeps the beginning."
    )

    @property
    def salt(self) -> str:
        """What cached prefixes are kept apart by, beside the model."""
        return "\0".join(part for part in (self.cache_salt, self.extra_key) if part)

    @property
    def truncation(self) -> Truncation:
        return Truncation(self.truncate_prompt_tokens, self.truncation_side or "right")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """value: the result. lengths: tokens of each text. cached: of all of these, from the prefix cache. seconds: that it
    took."""

    value: T
    lengths: list[int]
    cached: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(self.lengths)

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's usage."""
        return {
            "prompt_tokens": self.tokens,
            "total_tokens": self.tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def as_texts(given: Given, param: str) -> list[TextOrIds]:
    """One text or many, each as text or ids, as many. Raises RequestError if there are none or too many."""
    items: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not items:
        raise RequestError(f"{param} is empty", param=param)
    if len(items) > MAX_TEXTS:
        raise RequestError(f"{param} holds {len(items)} texts; at most {MAX_TEXTS} in one request", param=param)
    return items


async def tokenized(
    service: ModelService, given: Given, param: str, truncation: Truncation | None = None
) -> list[list[int]]:
    """The ids of each text in `given`. Raises RequestError naming `param` or `param[i]`."""
    items = as_texts(given, param)
    pooler = service.pooler

    def make() -> list[list[int]]:
        names = [f"{param}[{index}]" for index in range(len(items))] if len(items) > 1 else [param]
        return [pooler.token_ids(item, name, truncation) for item, name in zip(items, names, strict=True)]

    return await aside(make, sum(len(item) for item in items if isinstance(item, str)))


async def aside(make: Callable[[], T], characters: int) -> T:
    """`make()`, in a thread where it encodes much text, so that the event loop goes on."""
    return make() if characters <= INLINE_CHARACTERS else await asyncio.to_thread(make)


async def run(service: ModelService, jobs: Jobs[T], body: PooledBody) -> Done[T]:
    """The engine's answers to `jobs`, together. If one fails the others are cancelled and its error is raised."""
    started_s = time.monotonic()
    namespace = Namespace(salt=body.salt)
    window = asyncio.Semaphore(WINDOW)
    cached = 0

    async def one(job: Job) -> Vector:
        nonlocal cached
        async with window:
            vector, hit = await _vector(service, job, namespace, body, started_s)
        cached += hit
        return vector

    tasks = [asyncio.ensure_future(one(job)) for job in jobs.jobs]
    try:
        vectors = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    lengths = [len(job.token_ids) for job in jobs.jobs]
    return Done(jobs.finish(list(vectors)), lengths, cached, time.monotonic() - started_s)


async def _vector(
    service: ModelService, job: Job, namespace: Namespace, body: PooledBody, started_s: float
) -> tuple[Vector, int]:
    """One text's. started_s: when the whole request began, as its timeout is that of all texts together."""
    prompt = np.asarray(job.token_ids, np.int32)
    sampling = SamplingParams(max_tokens=1)
    priority = default_priority() if body.priority is None else body.priority
    request = EngineRequest(prompt, sampling, namespace, priority, pooling=job.pooling, timeout_s=body.timeout)
    stream = service.engine.generate(request)
    limit_s = request.timeout_s  # the server's and the header's count, too
    try:
        async with asyncio.timeout(None if limit_s is None else limit_s - (time.monotonic() - started_s)):
            vector, cached = await _received(stream)
    except TimeoutError as error:
        raise RequestError(
            f"the request took longer than its timeout of {limit_s:g} s",
            param="timeout",
            code="timeout",
            status=504,
            hint="send fewer texts, or allow more time",
        ) from error
    finally:
        if (close := getattr(stream, "aclose", None)) is not None:
            await close()
    if vector is None:
        raise EngineDead("the engine ended the request without a vector")
    return vector, cached


async def _received(stream: AsyncIterator[TokenChunk]) -> tuple[Vector | None, int]:
    """The vector in `stream`, and how many tokens came from the cache. Raises EngineError, or RequestError."""
    vector: Vector | None = None
    cached = 0
    async for chunk in stream:
        cached += chunk.cached_tokens or 0
        for extras in chunk.extras or ():
            if extras.pooled:
                vector = np.frombuffer(extras.pooled, "<f4")
        if chunk.finish_reason == "error":
            raise EngineError(chunk.error or "the engine could not go on with this request")
        if chunk.finish_reason == "abort" and chunk.error is not None:
            raise EngineDead(chunk.error)
        if chunk.finish_reason == "abort":  # there is no such thing as a part of a vector
            raise RequestError("the request was aborted", code="aborted", status=499)
        if chunk.finish_reason is not None:
            break
    return vector, cached


def shown_vector(vector: Vector, encoding: str) -> list[float] | str:
    """As numbers, or as the base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]


def envelope(service: ModelService, prefix: str, kind: str, data: Sequence[Any], done: Done[Any]) -> dict[str, Any]:
    """A list reply."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
        "data": list(data),
        "usage": done.usage,
    }
