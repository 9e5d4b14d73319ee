"""From an engine's chunks to output deltas: one or several answers, merged, with usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core.frontend.output import Chunk, OutputDelta, OutputStage
from core.interfaces.errors import EngineDead, EngineError

QUEUE_DEPTH = 32  # deltas of several answers that wait for a slow reader


@dataclass(slots=True)
class Usage:
    """Tokens of one HTTP request. cached_tokens: prompt tokens that the first sample of each prompt found cached.
    reasoning_tokens: of completion_tokens, those before the answer proper."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class CanEndByText(Protocol):
    """A request that may be closed because its text is complete, and not because nobody listens."""

    ended_by_text: bool


class Answers:
    """The answers to one or several prompts as they come.

    Iterate over `deltas()`; close it (or let it end) and every engine request behind it is finished or cancelled.
    """

    def __init__(
        self,
        streams: Sequence[AsyncIterator[Chunk]],
        stages: Sequence[OutputStage],
        prompt_tokens: int,
        samples: int = 1,
        requests: Sequence[CanEndByText] = (),
    ) -> None:
        """streams: an engine's chunks, one per answer, not started. stages: one per answer.

        prompt_tokens: of all prompts together. samples: answers per prompt; those of one prompt stand together.
        requests: behind the streams, one per answer; told when a stop string ended the text, which only this side sees.
        """
        self._requests = requests
        self._samples = samples
        self._streams = streams
        self._stages = stages
        self.usage = Usage(prompt_tokens)

    def deltas(self) -> AsyncGenerator[tuple[int, OutputDelta]]:
        """(index of the answer, delta), each answer's last with a finish_reason; empty deltas are left out.

        A request that somebody aborted ends with what it has. Raises what the engine raises, EngineError if it reports
        an error for a request, EngineDead if it gave one up.
        """
        return self._one(0) if len(self._streams) == 1 else self._merged()

    async def _one(self, index: int) -> AsyncGenerator[tuple[int, OutputDelta]]:
        stage, stream = self._stages[index], self._streams[index]
        usage = self.usage
        asyncio.get_running_loop().call_soon(stage.get_ready)  # when the request has gone out, as its first step runs
        try:
            async for chunk in stream:
                delta = stage.feed(chunk)
                finish = delta.finish_reason
                usage.completion_tokens += len(delta.token_ids)
                usage.reasoning_tokens += delta.reasoning_tokens
                if delta.cached_tokens is not None and index % self._samples == 0:
                    usage.cached_tokens += delta.cached_tokens
                if finish is not None:
                    if self._requests and chunk.finish_reason is None:
                        self._requests[index].ended_by_text = True
                    if finish == "error":
                        raise EngineError(delta.error or "the engine could not go on with this request")
                    if finish == "abort" and delta.error is not None:
                        raise EngineDead(delta.error)
                if delta.token_ids or not delta.empty:
                    yield index, delta
                if finish is not None:
                    return
            raise EngineDead("the engine ended the stream without a reason")
        finally:
            await _close(stream)

    async def _merged(self) -> AsyncGenerator[tuple[int, OutputDelta]]:
        queue: asyncio.Queue[tuple[int, OutputDelta | None, BaseException | None]] = asyncio.Queue(QUEUE_DEPTH)

        async def run(index: int) -> None:
            source = self._one(index)
            try:
                async for _, delta in source:
                    await queue.put((index, delta, None))
                await queue.put((index, None, None))
            except Exception as error:
                await queue.put((index, None, error))
            finally:
                await source.aclose()

        tasks = [asyncio.create_task(run(index)) for index in range(len(self._streams))]
        try:
            running = len(tasks)
            while running:
                index, delta, error = await queue.get()
                if error is not None:
                    raise error
                if delta is None:
                    running -= 1
                else:
                    yield index, delta
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _close(stream: Any) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
