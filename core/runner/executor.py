"""Who runs a plan. The engine sees an Executor; whether the runner is here or elsewhere is its business."""

from __future__ import annotations

from typing import Protocol

from core.interfaces.step import StepPlan, StepResult, TokenMasks


class StepHandle(Protocol):
    """A launched step."""

    def sample(self, masks: TokenMasks | None) -> None:
        """Go on with a step whose plan is masked. Once, before anything else is launched; never for other steps."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> StepResult:
        """Block until the step's tokens are on the host. May be called again; gives the same result."""


class Launches(Protocol):
    """The part of a ModelRunner that an executor drives."""

    def launch(self, plan: StepPlan) -> StepHandle: ...


class Executor(Protocol):
    """Runs plans in the order of `launch`. A plan and its arrays must not be changed after it was launched."""

    def launch(self, plan: StepPlan) -> StepHandle: ...

    def close(self) -> None:
        """Release threads or processes. Steps that were launched finish first."""


class InProcessExecutor:
    """Runs each plan in the caller's thread. On hardware with asynchronous steps `launch` returns once the work is
    queued, elsewhere when it is done."""

    def __init__(self, runner: Launches) -> None:
        self.runner = runner

    def launch(self, plan: StepPlan) -> StepHandle:
        return self.runner.launch(plan)

    def close(self) -> None:
        return None
