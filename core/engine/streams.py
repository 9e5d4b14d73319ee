"""One step's message → the queues of its requests. Decoded once, one small append per request.

A reader that is slower than the engine finds several tokens in one TokenChunk. So does everybody while many requests
run: waking a reader, and whatever it sends, costs some ten times what a token itself costs here, and a machine that
also computes the tokens needs that time for them. How often readers are woken is limited over all of them together
(`wakes_per_s`); first tokens and ends are told at once, and nothing waits longer than MAX_GATHER_S.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Protocol

import numpy as np

from core.engine.client import EngineRequest, TokenChunk
from core.engine.messages import FINISH_REASONS, Extras, StepOutputs, TopLogprobs
from core.engine.wire_errors import restore
from core.interfaces.errors import CoreError, EngineDead, Overloaded, RequestError
from core.tracing.record import Generation, RequestRecord, current_request

ABORT = FINISH_REASONS.index("abort")
FEW_STREAMS = 8  # so many get every token at once
MAX_GATHER_S = 0.05


class RequestObserver(Protocol):
    """Who wants to know about requests, for metrics. Times in seconds."""

    def tokens(self, intervals_s: list[float]) -> None:
        """One step gave these requests their next token, so long after the one before."""

    def first_token(self, ttft_s: float, queue_s: float | None, prompt_tokens: int, cached_tokens: int) -> None: ...

    def finished(self, reason: str, e2e_s: float, generated_tokens: int, decode_s: float | None = None) -> None:
        """decode_s: from the first token to the last; None without a second."""


class Stream:
    """What has come for one request and was not read yet."""

    __slots__ = (
        "arrival_s", "cached_tokens", "error", "extras", "finish", "first_s", "id", "last_s", "logprobs", "num_cached",
        "num_generated", "queue_s", "record", "request", "stop_ids", "tokens", "waiter",
    )  # fmt: skip

    def __init__(self, request_id: int, request: EngineRequest, arrival_s: float) -> None:
        self.id = request_id
        self.request = request
        self.arrival_s = arrival_s
        self.record: RequestRecord | None = None
        self.queue_s: float | None = None
        self.first_s: float | None = None
        self.last_s = 0.0
        self.num_cached = 0
        self.num_generated = 0
        self.tokens: list[int] = []
        self.logprobs: list[TopLogprobs] = []
        self.extras: list[Extras] = []
        self.cached_tokens: int | None = None
        self.finish = 0
        self.error: CoreError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def take(self) -> TokenChunk:
        """What came since the last call. Once all tokens are read: raises an error that refused the request or took
        the engine away; one that ended the text is in the last chunk."""
        error, finish = self.error, self.finish
        raised = error is not None and (not finish or isinstance(error, Overloaded | RequestError))
        if raised and not self.tokens:
            assert error is not None
            raise error
        # What is raised comes with the next call, so that its status and code are not lost; until then nothing ended.
        reason = None if raised else FINISH_REASONS[finish] or None
        tokens, self.tokens = self.tokens, []
        chunk = TokenChunk(tokens, reason, cached_tokens=self.cached_tokens)
        self.cached_tokens = None
        if self.logprobs:
            chunk.logprobs, self.logprobs = self.logprobs, []
        if self.extras:
            chunk.extras, self.extras = self.extras, []
        if error is not None and not raised:
            chunk.error = error.message
        return chunk


class StreamTable:
    """All requests of one front end that have not finished.

    cancel: sends a CancelRequest; called at most once per request. wakes_per_s: of all readers together, while more
    than a few run; 0 wakes them with every token.
    """

    def __init__(
        self,
        cancel: Callable[[int], None],
        observer: RequestObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        wakes_per_s: float = 0.0,
    ) -> None:
        self._cancel = cancel
        self._observer = observer
        self._clock = clock
        self._wakes_per_s = wakes_per_s
        self._woken_s = float("-inf")
        self._held: list[Stream] = []  # have tokens, and were not woken for them
        self._timer: asyncio.TimerHandle | None = None
        self._streams: dict[int, Stream] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request: EngineRequest) -> Stream:
        """A stream under a new id."""
        stream = Stream(self._next_id, request, self._clock())
        stream.record = record = current_request()
        if record is not None:
            record.num_begun += 1
        self._next_id += 1
        self._streams[stream.id] = stream
        return stream

    async def read(self, begin: Callable[[], tuple[Stream, frozenset[int]]]) -> AsyncGenerator[TokenChunk, None]:
        """Chunks until the finish. Closing it early cancels the request.

        begin: called when the first chunk is asked for; gives the open stream and the ids that end its text. What it
        raises is raised there.
        """
        loop = asyncio.get_running_loop()
        stream, stop_ids = begin()
        try:
            while True:
                if not (stream.tokens or stream.finish or stream.error):
                    stream.waiter = loop.create_future()
                    await stream.waiter
                chunk = stream.take()
                if chunk.finish_reason == "stop" and chunk.tokens and chunk.tokens[-1] in stop_ids:
                    chunk.stop_token = chunk.tokens[-1]
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self.close(stream)

    def close(self, stream: Stream) -> None:
        """The reader has gone: cancel what still runs."""
        if self._streams.pop(stream.id, None) is not None:
            self._cancel(stream.id)
            self._ended(stream, "stop" if stream.request.ended_by_text else "abort", self._clock())

    def abort(self, names: Collection[str] | None) -> int:
        """End those requests whose record is known by one of the names (None: all) with what they have, and finish
        reason "abort"; returns how many."""
        chosen = [
            stream
            for stream in self._streams.values()
            if names is None or (stream.record is not None and any(map(stream.record.known_as, names)))
        ]
        now_s = self._clock()
        for stream in chosen:
            del self._streams[stream.id]
            stream.finish = ABORT
            self._cancel(stream.id)
            self._ended(stream, "abort", now_s)
            stream.wake()
        return len(chosen)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers of all requests that have not finished."""
        return sum(len(stream.request.prompt) + stream.num_generated for stream in self._streams.values())

    def _ended(self, stream: Stream, reason: str, now_s: float) -> None:
        """Tell whoever wants to know."""
        first_s, last_s = stream.first_s, stream.last_s
        if self._observer is not None:
            decode_s = last_s - first_s if first_s is not None and stream.num_generated > 1 else None
            self._observer.finished(reason, now_s - stream.arrival_s, stream.num_generated, decode_s)
        if stream.record is not None:
            stream.record.generations.append(
                Generation(
                    stream.arrival_s, now_s, reason, len(stream.request.prompt), stream.num_cached,
                    stream.num_generated, stream.queue_s, first_s, last_s or None,
                )
            )  # fmt: skip

    def feed(self, outputs: StepOutputs) -> None:
        """Hand one step's tokens to their streams; ids that are closed already are skipped."""
        now_s = self._clock()
        streams = self._streams
        intervals_s: list[float] = []
        logprobs, extras, first = outputs.logprobs, outputs.extras, outputs.first
        ids = np.frombuffer(outputs.ids, "<i8").tolist()
        tokens = np.frombuffer(outputs.tokens, "<i4").tolist()
        finishes = outputs.finish
        gather_s = self._gathers_s(len(ids), now_s)
        for index, (request_id, token, finish) in enumerate(zip(ids, tokens, finishes, strict=True)):
            stream = streams.get(request_id)
            if stream is None:
                continue
            if token >= 0:
                stream.tokens.append(token)
                stream.num_generated += 1
                if stream.last_s:
                    intervals_s.append(now_s - stream.last_s)
                stream.last_s = now_s
            if first and index in first:
                self._began(stream, outputs, index, now_s)
            if logprobs and index in logprobs:
                stream.logprobs.append(logprobs[index])
            if extras and index in extras:
                stream.extras.append(extras[index])
            if finish:
                if index in outputs.errors:
                    stream.error = restore(outputs.errors[index], outputs.error_info.get(index))
                elif finish == ABORT:  # nobody here has asked for it
                    stream.error = EngineDead("the engine gave this request up because it is stopping")
                stream.finish = finish
                del streams[request_id]
                self._ended(stream, FINISH_REASONS[finish], now_s)
            if gather_s is None or finish or index in first:
                stream.wake()
            else:
                self._held.append(stream)
        if self._observer is not None and intervals_s:
            self._observer.tokens(intervals_s)
        if self._held and self._timer is None and gather_s is not None:
            self._timer = asyncio.get_running_loop().call_later(gather_s, self._wake_held)

    def _began(self, stream: Stream, outputs: StepOutputs, index: int, now_s: float) -> None:
        """Its first token is here."""
        cached = outputs.first[index]
        stream.cached_tokens = stream.num_cached = cached
        stream.first_s, stream.queue_s = now_s, outputs.queue_s.get(index)
        if self._observer is not None:
            self._observer.first_token(now_s - stream.arrival_s, stream.queue_s, len(stream.request.prompt), cached)

    def _gathers_s(self, num_streams: int, now_s: float) -> float | None:
        """How long tokens of this step may wait for more; None: their readers are woken now."""
        if num_streams > FEW_STREAMS and self._wakes_per_s:
            gather_s = min(num_streams / self._wakes_per_s, MAX_GATHER_S)
            if now_s - self._woken_s < gather_s:
                return gather_s
        self._woken_s = now_s
        self._wake_held()
        return None

    def _wake_held(self) -> None:
        """No more of them come soon enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, []
        for stream in held:
            if stream.tokens:
                stream.wake()

    def fail_all(self, error: Callable[[], CoreError]) -> None:
        """End every stream with an exception (of its own, for its own traceback): the engine is gone."""
        streams, self._streams = self._streams, {}
        now_s = self._clock()
        for stream in streams.values():
            stream.error = error()
            stream.wake()
            self._ended(stream, "error", now_s)
