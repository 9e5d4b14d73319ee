"""What the loop needs of a scheduler and of an executor; the real ones and the tests' fakes both fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.interfaces.step import StepPlan, StepResult, TokenMasks


class StepEventsLike(Protocol):
    """What a complete step means for requests: parallel arrays of n entries, one request at most once.

    ids [n] int64; tokens [n] int32 (-1: none); finish [n] uint8, index into FINISH_REASONS; rows [n] int32: row of
    the StepResult, for log-probabilities (-1: none). first: index into n -> cached prompt tokens. errors: index
    into n -> message, or the error itself.
    """

    ids: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    finish: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int32]
    first: dict[int, int]
    errors: dict[int, Any]


class SchedulerLike(Protocol):
    """Decides what the next step does. `request` is the scheduler's own type."""

    def add(self, request: Any) -> None:
        """Queue a request. Raises RequestError or Overloaded."""

    def cancel(self, request_id: int) -> bool:
        """End a request at any moment; False if it is unknown or has finished. Its one event, "abort", comes with
        the next `complete` or `take_events`."""

    def schedule(self) -> StepPlan | None:
        """The next step, or None if there is nothing to compute now."""

    def complete(self, result: StepResult) -> StepEventsLike:
        """Take a step's tokens, in the order of scheduling."""

    def take_events(self) -> StepEventsLike | None:
        """Events that wait for no step (cancellations); None if there are none."""

    @property
    def has_work(self) -> bool:
        """Whether requests wait or run, or events are left to take."""

    def stats(self) -> Mapping[str, float]:
        """At least: running, waiting, pages_total, pages_free, pages_evictable; and the totals since the start
        hit_tokens_total and preemptions_total."""

    def flush_cache(self) -> None:
        """Forget cached prefixes. Raises EngineError while requests run."""


class StepHandle(Protocol):
    """A launched step."""

    def sample(self, masks: TokenMasks | None) -> None:
        """Go on with a step whose plan is masked. Once, before anything else is launched; never for other steps."""

    def wait(self) -> StepResult:
        """Block until its tokens are on the host. Raises what the step raised."""


class ExecutorLike(Protocol):
    """Runs plans, in order."""

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue a step; returns before it is finished where the device can."""

    def close(self) -> None:
        """Give back threads, processes and device memory."""


class RanksLike(Protocol):
    """The other ranks of an engine, where there are some."""

    def check(self) -> None:
        """Raises EngineDead if one is gone."""

    def set_log_level(self, level: str) -> None:
        """Of their logs."""
