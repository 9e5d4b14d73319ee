"""Shapes that the OpenAI families share: usage, log-probabilities, stream envelopes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from core.frontend.output import PromptLogprob, TokenLogprob
from core.frontend.pump import Usage
from core.frontend.tokenizer import Tokenizer
from core.server.schemas import StreamOptions

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Items to iterate over once, and to close."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...
    def __anext__(self) -> Awaitable[T_co]: ...
    async def aclose(self) -> None: ...


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class UsagePolicy:
    """When a stream tells its usage."""

    def __init__(self, options: StreamOptions | None) -> None:
        self._last = options is not None and bool(options.include_usage)
        self._always = options is not None and bool(options.continuous_usage_stats)

    @property
    def constant(self) -> bool:
        """Whether all events but the last tell the same."""
        return not self._always

    def on(self, event: dict[str, Any], usage: Usage) -> dict[str, Any]:
        """`event` with what belongs in it; where usage comes at the end, the events before say null."""
        if self._always:
            event["usage"] = usage_object(usage)
        elif self._last:
            event["usage"] = None
        return event

    def last(self, envelope: dict[str, Any], usage: Usage) -> dict[str, Any] | None:
        """The event after the last choice, if there is one."""
        return {**envelope, "choices": [], "usage": usage_object(usage)} if self._last else None


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprob], num_top: int) -> dict[str, Any]:
    """OpenAI chat's log-probabilities."""

    def shown(token: int, logprob: float) -> dict[str, Any]:
        text, raw = tokenizer.piece(token)
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    return {
        "content": [
            {
                **shown(entry.token, entry.logprob),
                "top_logprobs": [shown(token, value) for token, value in entry.top[:num_top]],
            }
            for entry in entries
        ]
    }


def legacy_logprobs(
    tokenizer: Tokenizer,
    entries: Sequence[TokenLogprob],
    num_top: int,
    offset: int,
    prompt: Sequence[PromptLogprob] = (),
) -> dict[str, Any]:
    """OpenAI completions' log-probabilities. offset: characters before the answer (an echoed prompt). prompt: entries
    of the echoed prompt, which come first; the first has no log-probability."""
    both: list[TokenLogprob | PromptLogprob] = [*prompt, *entries]
    return {
        "tokens": [tokenizer.piece(entry.token)[0] for entry in both],
        "token_logprobs": [entry.logprob for entry in both],
        "top_logprobs": [_best(tokenizer, entry, num_top) for entry in both] if num_top else None,
        "text_offset": [*_offsets(tokenizer, prompt), *(offset + entry.text_offset for entry in entries)],
    }


def _best(tokenizer: Tokenizer, entry: TokenLogprob | PromptLogprob, num_top: int) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    best = {tokenizer.piece(token)[0]: value for token, value in reversed(entry.top[:num_top])}
    best[tokenizer.piece(entry.token)[0]] = entry.logprob
    return best


def _offsets(tokenizer: Tokenizer, entries: Sequence[PromptLogprob]) -> list[int]:
    """Where each token's text begins, in characters."""
    stream, offsets, length = tokenizer.decode_stream(skip_special_tokens=False), [], 0
    for entry in entries:
        offsets.append(length)
        length += len(stream.step(entry.token))
    return offsets


async def begun(source: Source[T]) -> Begun[T]:
    """`source`, after its first item is there: what goes wrong before it can still be an HTTP status."""
    try:
        first = await anext(source)
    except BaseException:
        await source.aclose()
        raise
    return Begun(first, source)


class Begun(Generic[T]):
    """An iterator whose first item is there already. No generator of its own, which every item would pass."""

    def __init__(self, first: T, source: Source[T]) -> None:
        self._first = [first]
        self._source = source

    def __aiter__(self) -> Begun[T]:
        return self

    def __anext__(self) -> Awaitable[T]:
        return self._kept() if self._first else anext(self._source)

    async def _kept(self) -> T:
        return self._first.pop()

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()


async def drained(source: AsyncIterator[T]) -> list[T]:
    """All items. Read by a task of its own, as an EventStream's are."""

    async def read() -> list[T]:
        return [item async for item in source]

    return await asyncio.create_task(read())
