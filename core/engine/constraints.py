"""Requests whose texts must fit a grammar, or that limit their tokens: waiting for grammars, masks in every step.

A step that samples such a text is launched without sampling. The step before is completed, its tokens are accepted by
the matchers, and only then the masks are filled and the step goes on: so it is the same with and without overlap.
Preemption changes nothing here, as a matcher knows the text and not where it runs. Steps of requests with logit
processors wait in the same way; the runner has their texts, and asks their processors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.engine.grammar_cache import Grammar
from core.engine.grammars import GrammarPool
from core.engine.messages import AddRequest
from core.engine.protocols import StepEventsLike
from core.engine.token_limits import TokenLimits, everything
from core.interfaces.errors import CoreError, EngineError, RequestError
from core.interfaces.grammar import GrammarBackend, GrammarMatcher
from core.interfaces.step import StepPlan, TokenMasks

# (request, why it ends): None where its text is complete.
Endings = list[tuple[int, CoreError | None]]
_FIRST_ROWS = 8


@dataclass(slots=True)
class _Text:
    """A text under a grammar. marker: bytes that its grammar begins behind, b"" once they have come. tail: the end of
    the text, as long as a part of the marker may be."""

    matcher: GrammarMatcher
    backend: GrammarBackend
    marker: bytes = b""
    tail: bytes = b""


class Constraints:
    """pool: compiles grammars; None where there is no backend. max_slots: of the scheduler's table. vocab_size: of the
    model, for limits on tokens."""

    def __init__(self, pool: GrammarPool | None, max_slots: int, vocab_size: int = 0) -> None:
        self._pool = pool
        self._texts: dict[int, _Text] = {}
        self._waiting: dict[int, AddRequest] = {}
        self._slots = np.zeros(max_slots, np.bool_)  # whose steps wait for earlier tokens
        self._any_processed = False
        self._limits: dict[int, TokenLimits] = {}
        self._num_words = -(-vocab_size // 32)
        self._words = np.zeros((0, 0), np.uint32)
        self._mask_s = 0.0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._waiting)

    def wait(self, timeout_s: float) -> None:
        """Sleep until a grammar is there, or for `timeout_s`."""
        if self._pool is not None:
            self._pool.wait(timeout_s)

    def stats(self) -> dict[str, float]:
        """Metric values."""
        if self._pool is None:
            return {}
        return {**self._pool.stats(), "grammar_mask_seconds_total": self._mask_s}

    def close(self) -> None:
        """End the threads that compile."""
        if self._pool is not None:
            self._pool.close()

    # Requests come and go

    def admits(self, request: AddRequest) -> bool:
        """Whether the request can run now; if not, it comes with `ready`. Raises RequestError, Overloaded."""
        params = request.sampling.grammar
        limits = TokenLimits.of(request.sampling, self._num_words)
        if limits is not None:
            self._limits.setdefault(request.id, limits)
        if params is None or request.id in self._texts:  # an id that is in use is the scheduler's to refuse
            return True
        if request.id in self._waiting:
            raise RequestError(f"request id {request.id} is in use", param="id", hint="use another id")
        if self._pool is None:
            raise RequestError(
                f"{params.param or params.kind} needs a grammar backend, and this server has none",
                param=params.param or None,
                code="no_grammar_backend",
                hint="install a plugin of kind grammar (`core plugins list --kind grammar`) and start again without "
                "--grammar-backend none",
            )
        grammar = self._pool.ask(request.id, params)
        if grammar is None:
            self._waiting[request.id] = request
            return False
        self._open(request, grammar)
        return True

    @property
    def waiting(self) -> list[AddRequest]:
        """Requests that wait for their grammar."""
        return list(self._waiting.values())

    def ready(self) -> list[tuple[AddRequest, CoreError | None]]:
        """Requests that waited and whose grammars are there, or why there is none."""
        if self._pool is None:
            return []
        told: list[tuple[AddRequest, CoreError | None]] = []
        for request_id, result in self._pool.take():
            request = self._waiting.pop(request_id)
            error: CoreError | None = None
            if isinstance(result, Grammar):
                try:
                    self._open(request, result)
                except CoreError as failure:
                    error = failure
            else:
                error = result
            told.append((request, error))
        return told

    def drop(self, request_id: int) -> AddRequest | None:
        """The request has gone. Returns it if it was waiting for its grammar, and so nobody else knows of it."""
        self._texts.pop(request_id, None)
        self._limits.pop(request_id, None)
        request = self._waiting.pop(request_id, None)
        if request is not None and self._pool is not None:
            self._pool.drop(request_id)
        return request

    def _open(self, request: AddRequest, grammar: Grammar) -> None:
        params = request.sampling.grammar
        assert params is not None
        matcher = _call(grammar.compiled.matcher)
        self._texts[request.id] = _Text(matcher, grammar.backend, (params.after or "").encode())

    # Steps

    def plan(self, plan: StepPlan) -> None:
        """Mark the plan if masks may be needed for it, or the texts of requests with logit processors."""
        for admission in plan.admissions:
            processed = bool(admission.sampling.processors)
            self._any_processed |= processed
            limited = admission.request_id in self._limits
            self._slots[admission.slot] = processed or limited or admission.request_id in self._texts
        any_wait = self._texts or self._limits or self._any_processed
        if any_wait and bool((self._slots[plan.slots] & plan.samples).any()):
            plan.masked = True

    def masks(self, plan: StepPlan, ids: npt.NDArray[np.int64]) -> tuple[TokenMasks | None, Endings]:
        """Masks of a marked plan, once the tokens of all steps before it are accepted. ids: request of each row.

        A text that nothing can follow, or whose matcher fails, ends; its row is free to get any token.
        """
        start_s = time.perf_counter()
        by_backend: dict[int, list[tuple[int, int, _Text]]] = {}
        free: list[tuple[int, int]] = []  # no grammar, and limits on tokens
        sampled = np.cumsum(plan.samples) - 1
        for row in np.flatnonzero(self._slots[plan.slots] & plan.samples).tolist():
            request_id = int(ids[row])
            text = self._texts.get(request_id)
            if text is not None and not text.marker:
                by_backend.setdefault(id(text.backend), []).append((int(sampled[row]), request_id, text))
            elif request_id in self._limits:
                free.append((int(sampled[row]), request_id))
        endings: Endings = []
        if not (by_backend or free):
            return None, endings
        constrained = [entry for group in by_backend.values() for entry in group]
        entries = [*((row, request_id) for row, request_id, _ in constrained), *free]
        num_words = constrained[0][2].backend.vocabulary.mask_words if constrained else self._num_words
        words = self._buffer(len(entries), num_words)
        everything(words[len(constrained) :])
        at = 0
        for group in by_backend.values():
            self._fill([(request_id, text) for _, request_id, text in group], words[at : at + len(group)], endings)
            at += len(group)
        if self._limits:
            self._limit([request_id for _, request_id in entries], words, endings)
        rows = np.array([row for row, _ in entries], np.int32)
        self._mask_s += time.perf_counter() - start_s
        return TokenMasks(rows, words), endings

    def _fill(self, texts: Sequence[tuple[int, _Text]], words: npt.NDArray[np.uint32], endings: Endings) -> None:
        """words [n, W]: a row for each text; all of one backend."""
        backend = texts[0][1].backend
        failed: set[int] = set()
        try:
            _call(backend.fill_masks, [text.matcher for _, text in texts], words)
        except CoreError:
            for index, (request_id, text) in enumerate(texts):
                try:
                    _call(text.matcher.fill_mask, words[index])
                except CoreError as error:
                    words[index] = 0
                    failed.add(index)
                    endings.append((request_id, error))
        for index in np.flatnonzero(~words.any(axis=1)).tolist():
            words[index] = 0xFFFFFFFF
            if index not in failed:
                has_end = bool(backend.vocabulary.eos_token_ids)
                endings.append((texts[index][0], EngineError("no token fits the grammar here") if has_end else None))

    def _limit(self, ids: Sequence[int], words: npt.NDArray[np.uint32], endings: Endings) -> None:
        """words [n, W]: without the tokens that the requests do not allow."""
        for request_id, mask in zip(ids, words, strict=True):
            limits = self._limits.get(request_id)
            if limits is None:
                continue
            limits.apply(mask)
            if not mask.any():
                everything(mask)
                if not any(ended == request_id for ended, _ in endings):
                    endings.append((request_id, _nothing_left()))

    def _buffer(self, num_rows: int, num_words: int) -> npt.NDArray[np.uint32]:
        """[num_rows, num_words], used again: the step that had it before is complete."""
        if self._words.shape[0] < num_rows or self._words.shape[1] != num_words:
            self._words = np.zeros((max(_FIRST_ROWS, 2 * num_rows), num_words), np.uint32)
        return self._words[:num_rows]

    def accept(self, events: StepEventsLike) -> Endings:
        """Take the tokens of a complete step. Requests that it finished are forgotten."""
        endings: Endings = []
        if not (self._texts or self._limits):
            return endings
        rows = zip(events.ids.tolist(), events.tokens.tolist(), events.finish.tolist(), strict=True)
        for request_id, token, finish in rows:
            if (limits := self._limits.get(request_id)) is not None:
                if finish:
                    del self._limits[request_id]
                elif token >= 0:
                    limits.take(token)
            text = self._texts.get(request_id)
            if text is None:
                continue
            if finish:
                del self._texts[request_id]
            elif token >= 0:
                try:
                    if self._take(text, token):
                        endings.append((request_id, None))
                except CoreError as error:
                    endings.append((request_id, error))
        return endings

    def _take(self, text: _Text, token: int) -> bool:
        """Whether the text is complete with this token."""
        if text.marker:
            assert self._pool is not None
            seen = text.tail + self._pool.backends.pieces[token]
            if text.marker in seen:
                text.marker = text.tail = b""
            else:
                text.tail = seen[max(0, len(seen) - len(text.marker) + 1) :]
            return False
        if not _call(text.matcher.accept, token):
            raise EngineError(f"token {token} was sampled, which does not fit the request's grammar")
        return bool(_call(lambda: text.matcher.terminated))


def _nothing_left() -> CoreError:
    return RequestError(
        "allowed_token_ids, bad_words and what the text must fit leave no token that may come next",
        param="allowed_token_ids",
        code="no_token_allowed",
    )


def _call(function: Any, *args: Any) -> Any:
    """`function(*args)` of a backend. Whatever it raises becomes a CoreError, which ends one request: exceptions of
    native libraries may be none of `Exception`."""
    try:
        return function(*args)
    except (CoreError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise EngineError(f"the grammar backend failed: {type(error).__name__}: {error}") from error
