"""The engine driven by plain calls, for whole batches: no process, no thread, no event loop."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from core.engine.client import EngineRequest, TokenChunk
from core.engine.engine import Engine
from core.engine.messages import FINISH_REASONS, AddRequest, StepOutputs
from core.engine.wire_errors import restore
from core.interfaces.errors import EngineDead, Overloaded

REST_S = 0.05  # at a time, while nothing but grammars are waited for
Progress = Callable[[int, TokenChunk], bool | None]


class OfflineEngine:
    """Drives an Engine from the caller's thread.

    random_seed: of seeds drawn for requests that give none; None draws from the operating system.
    """

    def __init__(self, engine: Engine, random_seed: int | None = None) -> None:
        self.engine = engine
        self._random = random.Random(random_seed) if random_seed is not None else random.SystemRandom()
        self._ids = itertools.count(1)

    def generate(self, requests: Sequence[EngineRequest], on_progress: Progress | None = None) -> list[TokenChunk]:
        """Run all; returns one whole TokenChunk per request, in order. A refused request is a chunk with
        finish_reason "error" and the message, so that one bad request costs no other its answer.

        on_progress(index, chunk): called with each request's new tokens as they come; True ends that request.
        Raises EngineDead if the engine gives up. On any exception (Ctrl-C too) what runs is cancelled and freed.
        """
        results = [TokenChunk([]) for _ in requests]
        waiting = deque(range(len(requests)))
        running: dict[int, int] = {}
        window = 2 * self.engine.hello.max_running_requests
        try:
            while waiting or running:
                while waiting and len(running) < window:
                    index = waiting.popleft()
                    request_id = next(self._ids)
                    running[request_id] = index
                    self.engine.submit(self._message(request_id, requests[index]))
                self.engine.rest(REST_S)
                try:
                    turn = self.engine.step() or ()
                except Exception as error:
                    running.clear()  # nothing of this engine can be brought to an end any more
                    raise EngineDead(f"the engine gave up: {error}") from error
                for outputs in turn:
                    self._feed(outputs, requests, results, running, waiting, on_progress)
            while self.engine.has_work:  # requests that on_progress ended still have to give back what they hold
                self.engine.step()
            self.engine.tell_steps(at_once=True)
        finally:
            if running:
                self._abandon(running)
        return results

    def _message(self, request_id: int, request: EngineRequest) -> AddRequest:
        seed = request.seed if request.seed is not None else request.sampling.seed
        return AddRequest(
            id=request_id,
            token_ids=np.ascontiguousarray(request.prompt, np.dtype("<i4")).tobytes(),
            sampling=request.sampling,
            seed=self._random.getrandbits(63) if seed is None else seed,
            namespace=request.namespace.encode(),
            priority=request.priority,
            tenant=request.tenant,
            weight=request.weight,
            timeout_s=request.timeout_s,
            pooling=request.pooling,
        )

    def _feed(
        self,
        outputs: StepOutputs,
        requests: Sequence[EngineRequest],
        results: list[TokenChunk],
        running: dict[int, int],
        waiting: deque[int],
        on_progress: Progress | None,
    ) -> None:
        ids = np.frombuffer(outputs.ids, "<i8").tolist()
        tokens = np.frombuffer(outputs.tokens, "<i4").tolist()
        finishes = np.frombuffer(outputs.finish, np.uint8).tolist()
        for entry, (request_id, token, finish) in enumerate(zip(ids, tokens, finishes, strict=True)):
            index = running.get(request_id)
            if index is None:
                continue
            chunk = TokenChunk([token] if token >= 0 else [], FINISH_REASONS[finish] or None)
            if entry in outputs.errors:
                error = restore(outputs.errors[entry], outputs.error_info.get(entry))
                if isinstance(error, Overloaded):  # the queue is shorter than the window: later, not never
                    del running[request_id]
                    waiting.append(index)
                    continue
                chunk.error = str(error)
            chunk.cached_tokens = outputs.first.get(entry)
            if entry in outputs.extras:
                chunk.extras = [outputs.extras[entry]]
            if entry in outputs.logprobs:
                chunk.logprobs = [outputs.logprobs[entry]]
            if FINISH_REASONS[finish] == "stop" and token >= 0 and self._stops(token, requests[index]):
                chunk.stop_token = token
            _append(results[index], chunk)
            if finish:
                del running[request_id]
            if on_progress is not None and on_progress(index, chunk) and not finish:
                del running[request_id]
                self.engine.cancel(request_id)

    def _stops(self, token: int, request: EngineRequest) -> bool:
        sampling = request.sampling
        return token in sampling.stop_token_ids or (
            not sampling.ignore_eos and token in self.engine.hello.eos_token_ids
        )

    def _abandon(self, running: dict[int, int]) -> None:
        for request_id in running:
            self.engine.cancel(request_id)
        try:
            while self.engine.has_work:
                self.engine.step()
        except Exception:  # the first exception is the one to tell; this engine gave up
            return


def _append(whole: TokenChunk, chunk: TokenChunk) -> None:
    whole.tokens += chunk.tokens
    whole.finish_reason = chunk.finish_reason
    whole.stop_token = chunk.stop_token
    whole.error = chunk.error
    if chunk.cached_tokens is not None:
        whole.cached_tokens = chunk.cached_tokens
    if chunk.extras is not None:
        whole.extras = (whole.extras or []) + chunk.extras
    if chunk.logprobs is not None:
        whole.logprobs = (whole.logprobs or []) + chunk.logprobs
