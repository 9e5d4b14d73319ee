"""What the loop needs of a scheduler and of an executor; the real ones and the tests' fakes both fit."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.interfaces.step import StepPlan, StepResult


class StepEventsLike(Protocol):
    """What a complete step means for requests: parallel arrays of n entries, one request at most once.

    ids [n] int64; tokens [n] int32 (-1: none); finish [n] uint8, index into FINISH_REASONS; rows [n] int32: row of
    the StepResult, for log-probabilities (-1: none). first: index into n -> cached prompt tokens. errors: index
    into n -> message.
    """

    ids: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    finish: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int32]
    first: dict[int, int]
    errors: dict[int, str]


class SchedulerStatsLike(Protocol):
    """Counts now, and totals since the start (`num_preemptions`, `cached_tokens`)."""

    num_running: int
    num_waiting: int
    free_pages: int
    total_pages: int
    cached_pages: int
    num_preemptions: int
    cached_tokens: int


class SchedulerLike(Protocol):
    """Decides what the next step does. `request` is the scheduler's own type."""

    def add(self, request: Any) -> None:
        """Queue a request. Raises RequestError or Overloaded."""

    def cancel(self, request_id: int) -> None:
        """End a request as soon as no step in flight touches it; unknown ids are ignored. An "abort" event follows,
        from `complete` of a step in flight or from the next `poll_events`."""

    def schedule(self) -> StepPlan | None:
        """The next step, or None if there is nothing to compute now."""

    def complete(self, result: StepResult) -> StepEventsLike:
        """Take a step's tokens, in the order of scheduling."""

    def poll_events(self) -> StepEventsLike | None:
        """Events that no step brought: requests that ended while they waited. None if there are none."""

    @property
    def has_work(self) -> bool:
        """Whether requests wait or run, or events are left to poll."""

    def stats(self) -> SchedulerStatsLike:
        """Counts, O(1)."""

    def flush_cache(self) -> None:
        """Forget cached prefixes. Raises EngineError while requests run."""


class StepHandle(Protocol):
    """A launched step."""

    def wait(self) -> StepResult:
        """Block until its tokens are on the host. Raises what the step raised."""


class ExecutorLike(Protocol):
    """Runs plans, in order."""

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue a step; returns before it is finished where the device can."""

    def close(self) -> None:
        """Give back threads, processes and device memory."""
