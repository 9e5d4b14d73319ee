"""Deadlines: which requests have run out of time. A heap, so that a step costs one comparison."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from heapq import heapify, heappop, heappush

from core.interfaces.errors import CoreError, RequestError
from core.scheduler.request import Request

SPARE = 1024  # entries of requests that are over, before the heap is rebuilt


class Limit(IntEnum):
    """What ends at a deadline."""

    WHOLE = 0  # the request, waiting or running
    QUEUE = 1  # the request if it has never run


class Deadlines:
    """Entries of requests that ended otherwise stay until their time, or until there are too many of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Limit]] = []

    @property
    def pending(self) -> int:
        """Entries; 0: nobody has a deadline."""
        return len(self._heap)

    def push(self, at_s: float, request_id: int, limit: Limit, live: Mapping[int, Request]) -> None:
        """`limit` of `request_id` ends at `at_s` on the monotonic clock. live: requests that have not ended, by id."""
        if len(self._heap) > 2 * len(live) + SPARE:
            self._heap = [entry for entry in self._heap if entry[1] in live]
            heapify(self._heap)
        heappush(self._heap, (at_s, request_id, limit))

    def due(self, now_s: float) -> list[tuple[int, Limit]]:
        """Those whose time is over, earliest first; they are forgotten."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            _, request_id, limit = heappop(self._heap)
            found.append((request_id, limit))
        return found


def expired(request: Request, limit: Limit, now_s: float, max_queue_s: float | None) -> CoreError | None:
    """The error that ends `request` because `limit` was due; None if it is not its own (ids are used again) or does
    not matter any more."""
    if limit is Limit.WHOLE:
        if request.timeout_s is None or request.arrival_s + request.timeout_s > now_s:
            return None
        where = "while it waited" if request.cached_tokens < 0 else "while it ran"
        return RequestError(
            f"the request took longer than its timeout of {request.timeout_s:g} s and was ended {where}",
            param="timeout",
            code="timeout",
            status=504,
            hint="send it again later, ask for fewer tokens, or allow more time",
        )
    if request.cached_tokens >= 0 or max_queue_s is None or request.arrival_s + max_queue_s > now_s:
        return None
    return RequestError(
        f"the request waited {max_queue_s:g} s for its turn, which is max_queue_s",
        code="queue_timeout",
        status=503,
        hint="send it again later",
    )
