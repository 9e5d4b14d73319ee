"""An executor for several ranks: what rank 0 runs, the others are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.engine.ranks import Ranks
from core.interfaces.step import StepPlan, StepResult, TokenMasks
from core.runner.executor import Executor, StepHandle


class MultiRankExecutor:
    """Sends each plan to the other ranks, then launches it on rank 0, whose result is the step's.

    A step that goes wrong on one rank leaves the others inside a collective that nobody ends: no later step can be
    trusted, so any failure is EngineDead, and the engine gives up.
    """

    def __init__(self, executor: Executor, ranks: Ranks, leave: Callable[[], None] = lambda: None) -> None:
        """leave: have all ranks leave their group; called before they are ended."""
        self._executor = executor
        self._ranks = ranks
        self._leave = leave

    @property
    def runner(self) -> Any:
        """Rank 0's, for measurements."""
        return self._executor.runner  # type: ignore[attr-defined]

    def launch(self, plan: StepPlan) -> StepHandle:
        """Raises EngineDead if a rank is gone."""
        self._ranks.launch(plan)
        return _Step(self._executor.launch(plan), self._ranks)

    def close(self) -> None:
        """Rank 0's steps end first, then the group, then the other ranks."""
        self._executor.close()
        self._leave()
        self._ranks.close()


class _Step:
    def __init__(self, step: StepHandle, ranks: Ranks) -> None:
        self._step = step
        self._ranks = ranks

    def sample(self, masks: TokenMasks | None) -> None:
        self._step.sample(masks)

    def done(self) -> bool:
        return self._step.done()

    def wait(self) -> StepResult:
        """Raises EngineDead if this step, or any rank, went wrong."""
        result = self._step.wait()
        if result.error is not None:
            raise self._ranks.dead(result.error)
        self._ranks.check()
        return result
