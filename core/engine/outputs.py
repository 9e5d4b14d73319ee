"""StepEvents (the scheduler's arrays) → StepOutputs (the message): a few `tobytes`, whatever the batch size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from core.engine.messages import FINISH_REASONS, AddRequest, ErrorInfo, StepOutputs, TopLogprobs
from core.engine.protocols import StepEventsLike
from core.interfaces.step import Logprobs, StepResult

ABORT = FINISH_REASONS.index("abort")
STOP = FINISH_REASONS.index("stop")
ERROR = FINISH_REASONS.index("error")
NO_TOKEN = -1


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

    def opened(self, request: AddRequest) -> None:
        """The scheduler has it."""
        if request.sampling.logprobs is not None:
            self._num_logprobs[request.id] = request.sampling.logprobs

    def took(self, result: StepResult, ids: Mapping[int, int]) -> None:
        """A step is complete. ids: slot -> request, of the rows of its plan whose requests still live."""

    def build(self, events: StepEventsLike, result: StepResult | None) -> StepOutputs:
        """The message, once per `events`. result: the step that they come from, if one."""
        finish = np.asarray(events.finish, np.uint8)
        errors = dict(events.errors)
        info = {index: ErrorInfo() for index in errors}
        if self.failed:
            finish = finish.copy()
            for index in np.flatnonzero(finish):
                known = self.failed.get(int(events.ids[index]))
                if known is not None:
                    finish[index] = ERROR
                    errors[int(index)], info[int(index)] = known
        if self.stopped:
            finish = finish.copy()
            for index in np.flatnonzero(finish == ABORT):
                if int(events.ids[index]) in self.stopped:
                    finish[index] = STOP
        logprobs, queue_s = result.logprobs if result is not None else None, self.queue_s
        return StepOutputs(
            ids=np.asarray(events.ids, np.int64).tobytes(),
            tokens=np.asarray(events.tokens, np.int32).tobytes(),
            finish=finish.tobytes(),
            first=dict(events.first),
            logprobs=_logprobs(events, logprobs, self._num_logprobs) if logprobs and self._num_logprobs else {},
            errors=errors,
            error_info=info,
            queue_s={i: queue_s[r] for i in events.first if (r := int(events.ids[i])) in queue_s} if queue_s else {},
        )

    def told(self, events: StepEventsLike) -> None:
        """What was built of `events` is told: forget what is over."""
        for index in events.first:
            self.queue_s.pop(int(events.ids[index]), None)
        if events.finish.any():
            for request_id in events.ids[np.flatnonzero(events.finish)].tolist():
                self.failed.pop(request_id, None)
                self.stopped.discard(request_id)
                self.queue_s.pop(request_id, None)
                self._num_logprobs.pop(request_id, None)

    @property
    def empty(self) -> bool:
        """Whether nothing of any request is left."""
        return not (self.failed or self.stopped or self.queue_s or self._num_logprobs)


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
