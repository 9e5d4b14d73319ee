"""StepEvents (the scheduler's arrays) → StepOutputs (the message): a few `tobytes`, whatever the batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.engine.messages import FINISH_REASONS, AddRequest, ErrorInfo, Extras, StepOutputs, TopLogprobs
from core.engine.protocols import StepEventsLike
from core.engine.wire_errors import describe
from core.interfaces.step import Logprobs, RowExtras, StepResult

STOP = FINISH_REASONS.index("stop")
LENGTH = FINISH_REASONS.index("length")
ABORT = FINISH_REASONS.index("abort")
ERROR = FINISH_REASONS.index("error")
NO_TOKEN = -1


@dataclass(slots=True)
class _Gathered:
    """What a request that asked for more than tokens has given so far and was not told yet, by position: a prompt that
    is computed again after a preemption gives the same again. told: hidden states before this position are told."""

    is_pooled: bool
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)
    hidden: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    told: int = 0
    pooled: npt.NDArray[np.float32] | None = None

    def take(self, row: RowExtras) -> None:
        """What one step gave."""
        if row.prompt_logprobs is not None:
            values = row.prompt_logprobs
            columns = (values.chosen.tolist(), values.top_ids.tolist(), values.top.tolist())
            for position, (chosen, ids, top) in enumerate(zip(*columns, strict=True), row.prompt_start):
                self.logprobs[position] = TopLogprobs(chosen, ids, top)
        if row.hidden is not None:
            for position, state in enumerate(row.hidden, row.hidden_start):
                if position >= self.told:
                    self.hidden[position] = state
        if row.pooled is not None:
            self.pooled = row.pooled

    def tell(self) -> Extras | None:
        """All of it as a message, with a token (or a vector); it is forgotten here."""
        logprobs, hidden, pooled = self.logprobs, self.hidden, self.pooled
        if not (logprobs or hidden) and pooled is None:
            return None
        self.logprobs, self.hidden, self.pooled = {}, {}, None
        states = [hidden[position] for position in sorted(hidden)]
        if hidden:
            self.told = max(hidden) + 1
        return Extras(
            prompt_start=min(logprobs, default=0),
            prompt_logprobs=[logprobs[position] for position in sorted(logprobs)] if logprobs else None,
            hidden=np.stack(states).astype("<f4", copy=False).tobytes() if states else b"",
            hidden_size=len(states[0]) if states else 0,
            pooled=b"" if pooled is None else pooled.astype("<f4", copy=False).tobytes(),
        )


class OutputBuilder:
    """What has to be known of live requests to say what a step gave them.

    failed: request id -> error, of requests that a failed step took down; their finish becomes "error".
    stopped: requests that were cancelled because their texts are complete; their finish becomes "stop".
    queue_s: request id -> seconds it waited, of requests that have not given a token yet.
    """

    def __init__(self) -> None:
        self.failed: dict[int, tuple[str, ErrorInfo]] = {}
        self.stopped: set[int] = set()
        self.queue_s: dict[int, float] = {}
        self._num_logprobs: dict[int, int] = {}
        self._gathered: dict[int, _Gathered] = {}

    def opened(self, request: AddRequest) -> None:
        """The scheduler has it."""
        if request.sampling.logprobs is not None:
            self._num_logprobs[request.id] = request.sampling.logprobs
        sampling, is_pooled = request.sampling, request.pooling is not None
        if is_pooled or sampling.prompt_logprobs is not None or sampling.hidden_states is not None:
            self._gathered[request.id] = _Gathered(is_pooled)

    def took(self, result: StepResult, ids: Mapping[int, int]) -> None:
        """A step is complete. ids: slot -> request, of the rows of its plan; what is of requests that are over is
        dropped."""
        for slot, row in result.extras.items():
            gathered = self._gathered.get(ids.get(slot, -1))
            if gathered is not None:
                gathered.take(row)

    def build(self, events: StepEventsLike, result: StepResult | None) -> StepOutputs:
        """The message, once per `events`. result: the step that they come from, if one."""
        finish, tokens = np.asarray(events.finish, np.uint8), np.asarray(events.tokens, np.int32)
        errors: dict[int, str] = {}
        info: dict[int, ErrorInfo] = {}
        for index, error in events.errors.items():
            errors[index], info[index] = (error, ErrorInfo()) if isinstance(error, str) else describe(error)
        if self.failed:
            finish = finish.copy()
            for index in np.flatnonzero(finish).tolist():
                known = self.failed.get(int(events.ids[index]))
                if known is not None:
                    finish[index] = ERROR
                    errors[index], info[index] = known
        if self.stopped:
            finish = finish.copy()
            for index in np.flatnonzero(finish == ABORT).tolist():
                if int(events.ids[index]) in self.stopped:
                    finish[index] = STOP
        extras: dict[int, Extras] = {}
        if self._gathered:
            finish, tokens, extras = self._extras(events, finish, tokens)
        logprobs, queue_s = result.logprobs if result is not None else None, self.queue_s
        return StepOutputs(
            ids=np.asarray(events.ids, np.int64).tobytes(),
            tokens=tokens.tobytes(),
            finish=finish.tobytes(),
            first=dict(events.first),
            logprobs=_logprobs(events, logprobs, self._num_logprobs) if logprobs and self._num_logprobs else {},
            errors=errors,
            error_info=info,
            queue_s={i: queue_s[r] for i in events.first if (r := int(events.ids[i])) in queue_s} if queue_s else {},
            extras=extras,
        )

    def _extras(
        self, events: StepEventsLike, finish: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], dict[int, Extras]]:
        """(finish, tokens, extras): what goes out with the entries; a vector comes without a token."""
        finish, tokens, extras = finish.copy(), tokens.copy(), {}
        for index, request_id in enumerate(events.ids.tolist()):
            gathered = self._gathered.get(request_id)
            if gathered is None or tokens[index] < 0:  # the end of a request that gave nothing now
                continue
            if (told := gathered.tell()) is not None:
                extras[index] = told
            if gathered.is_pooled:
                tokens[index] = NO_TOKEN
                finish[index] = STOP if finish[index] == LENGTH else finish[index]
        return finish, tokens, extras

    def told(self, events: StepEventsLike, ended: Sequence[int]) -> None:
        """What was built of `events` is told: forget what is over. ended: requests that it ends."""
        for index in events.first:
            self.queue_s.pop(int(events.ids[index]), None)
        for request_id in ended:
            self.failed.pop(request_id, None)
            self.stopped.discard(request_id)
            self.queue_s.pop(request_id, None)
            self._num_logprobs.pop(request_id, None)
            self._gathered.pop(request_id, None)

    @property
    def empty(self) -> bool:
        """Whether nothing of any request is left."""
        return not (self.failed or self.stopped or self.queue_s or self._num_logprobs or self._gathered)


def _logprobs(events: StepEventsLike, logprobs: Logprobs, num_logprobs: Mapping[int, int]) -> dict[int, TopLogprobs]:
    found: dict[int, TopLogprobs] = {}
    for index, (request_id, row, token) in enumerate(
        zip(events.ids.tolist(), events.rows.tolist(), events.tokens.tolist(), strict=True)
    ):
        count = num_logprobs.get(request_id)
        if count is None or row < 0 or token < 0:
            continue
        ids = logprobs.top_ids[row, :count]
        valid = ids >= 0
        found[index] = TopLogprobs(
            float(logprobs.chosen[row]), ids[valid].tolist(), logprobs.top[row, :count][valid].tolist()
        )
    return found


def error_outputs(failures: list[tuple[int, str, ErrorInfo]]) -> StepOutputs:
    """Requests that ended before they began: (id, message, info) each."""
    count = len(failures)
    return StepOutputs(
        ids=np.array([request_id for request_id, _, _ in failures], np.int64).tobytes(),
        tokens=np.full(count, NO_TOKEN, np.int32).tobytes(),
        finish=np.full(count, ERROR, np.uint8).tobytes(),
        errors={index: message for index, (_, message, _) in enumerate(failures)},
        error_info={index: info for index, (_, _, info) in enumerate(failures)},
    )


def abort_outputs(ids: list[int]) -> StepOutputs:
    """Requests that were cancelled before they began."""
    return StepOutputs(
        ids=np.array(ids, np.int64).tobytes(),
        tokens=np.full(len(ids), NO_TOKEN, np.int32).tobytes(),
        finish=np.full(len(ids), ABORT, np.uint8).tobytes(),
    )
