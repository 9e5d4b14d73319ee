"""Shapes that the OpenAI families share: usage, log-probabilities, stream envelopes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar

from core.frontend.output import TokenLogprob
from core.frontend.pump import Usage
from core.frontend.tokenizer import Tokenizer
from core.server.schemas import StreamOptions

T = TypeVar("T")


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


def legacy_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], num_top: int, offset: int) -> dict[str, Any]:
    """OpenAI completions' log-probabilities. offset: characters before the answer (an echoed prompt)."""
    top: list[dict[str, float]] | None = None
    if num_top:
        top = []
        for entry in entries:
            best = {tokenizer.piece(token)[0]: value for token, value in reversed(entry.top[:num_top])}
            best[tokenizer.piece(entry.token)[0]] = entry.logprob
            top.append(best)
    return {
        "tokens": [tokenizer.piece(entry.token)[0] for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": top,
        "text_offset": [offset + entry.text_offset for entry in entries],
    }


async def begun(source: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """`source`, after its first item is there: what goes wrong before it can still be an HTTP status."""
    try:
        first = await anext(source)
    except BaseException:
        await source.aclose()
        raise
    return _resumed(first, source)


async def _resumed(first: T, source: AsyncGenerator[T]) -> AsyncGenerator[T]:
    try:
        yield first
        async for item in source:
            yield item
    finally:
        await source.aclose()


async def drained(source: AsyncIterator[T]) -> list[T]:
    """All items."""
    return [item async for item in source]
