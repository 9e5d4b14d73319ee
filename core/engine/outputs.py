"""StepEvents (the scheduler's arrays) → StepOutputs (the message): a few `tobytes`, whatever the batch size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from core.engine.messages import FINISH_REASONS, ErrorInfo, StepOutputs, TopLogprobs
from core.engine.protocols import StepEventsLike
from core.interfaces.step import Logprobs

ABORT = FINISH_REASONS.index("abort")
ERROR = FINISH_REASONS.index("error")
NO_TOKEN = -1


def from_events(
    events: StepEventsLike,
    logprobs: Logprobs | None,
    num_logprobs: Mapping[int, int],
    failed: Mapping[int, tuple[str, ErrorInfo]],
    queue_s: Mapping[int, float],
) -> StepOutputs:
    """num_logprobs: request id -> how many alternatives it asked for, of requests that asked at all.
    failed: request id -> error, of requests that a failed step took down; their finish becomes "error".
    queue_s: request id -> seconds it waited, for requests that have not given a token yet."""
    finish = np.asarray(events.finish, np.uint8)
    errors = dict(events.errors)
    info = {index: ErrorInfo() for index in errors}
    if failed:
        finish = finish.copy()
        for index in np.flatnonzero(finish):
            known = failed.get(int(events.ids[index]))
            if known is not None:
                finish[index] = ERROR
                errors[int(index)], info[int(index)] = known
    return StepOutputs(
        ids=np.asarray(events.ids, np.int64).tobytes(),
        tokens=np.asarray(events.tokens, np.int32).tobytes(),
        finish=finish.tobytes(),
        first=dict(events.first),
        logprobs=_logprobs(events, logprobs, num_logprobs) if logprobs is not None and num_logprobs else {},
        errors=errors,
        error_info=info,
        queue_s={i: queue_s[r] for i in events.first if (r := int(events.ids[i])) in queue_s} if queue_s else {},
    )


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
