"""RunningStep: the handle of one launched step, from its plan to its result."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from core.interfaces.step import Int32, StepPlan, StepResult, StepTimes, TokenMasks
from core.runner.extras import Int64, StepExtras
from core.runner.graphs import Replayed
from core.runner.inputs import StepInputs
from core.runner.processors import RowEdits
from core.runner.sampler import Sampled

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Computed:
    """A step whose forward pass is queued. hidden [R, D]: final hidden states of the rows that get a token.

    extras: what rows give beside tokens. replayed: the logits and the greedy tokens, where the step was recorded with
    them. event: before the step's work, if steps are timed.
    """

    step: StepInputs
    hidden: torch.Tensor
    times: StepTimes
    extras: StepExtras | None = None
    replayed: Replayed | None = None
    event: Any = None


@dataclass(slots=True)
class Pending:
    """A queued step: its sampled rows [S] and the host tensors that hold its output after its event, those of the
    extras last; tokens and their logits may be followed by padding. sampled: None if no row gets a token. generating,
    as in StepInputs. edits: rows with processors. first_event: Computed.event."""

    slots: Int32
    times: StepTimes
    sampled: Sampled | None
    host: list[torch.Tensor] = field(default_factory=list)
    generating: Int64 | None = None
    extras: StepExtras | None = None
    event: Any = None
    edits: RowEdits | None = None
    first_event: Any = None


class _Runner(Protocol):
    """The part of a ModelRunner that its steps call."""

    @property
    def async_steps(self) -> bool: ...

    def stream(self) -> AbstractContextManager[Any]: ...

    def compute(self, plan: StepPlan) -> Computed: ...

    def sample(self, computed: Computed, masks: TokenMasks | None) -> Pending: ...

    def finish(self, plan: StepPlan, pending: Pending, started_s: float) -> StepResult: ...

    def count_failure(self) -> None: ...


class RunningStep:
    """Life: `start`, `sample` if the plan is masked, `wait`. What goes wrong on the way becomes a result with every
    row failed."""

    def __init__(self, runner: _Runner, plan: StepPlan) -> None:
        self._runner = runner
        self._plan = plan
        self._started_s = time.perf_counter()
        self._computed: Computed | None = None
        self._pending: Pending | None = None
        self._result: StepResult | None = None

    def start(self) -> None:
        """Queue the forward pass and, unless the plan is masked, the sampling. Where steps are not asynchronous, the
        result is there afterwards."""
        runner, plan = self._runner, self._plan
        try:
            with torch.inference_mode(), runner.stream():
                computed = runner.compute(plan)
                if plan.masked:
                    self._computed = computed
                    return
                self._pending = runner.sample(computed, None)
        except Exception as error:
            self._fail(error)
            return
        if not runner.async_steps:
            self.wait()

    def sample(self, masks: TokenMasks | None) -> None:
        """Queue the sampling of a masked step, as `start` of others."""
        computed, self._computed = self._computed, None
        if computed is None:  # the forward pass went wrong
            return
        try:
            with torch.inference_mode(), self._runner.stream():
                self._pending = self._runner.sample(computed, masks)
        except Exception as error:
            self._fail(error)
            return
        if not self._runner.async_steps:
            self.wait()

    def done(self) -> bool:
        """Whether the result is on the host already."""
        return self._result is not None

    def wait(self) -> StepResult:
        """Block until it is. A device fault that shows only now fails the whole step, like one at launch."""
        if self._result is None and self._pending is not None:
            try:
                self._result = self._runner.finish(self._plan, self._pending, self._started_s)
            except Exception as error:
                self._fail(error)
            self._pending = None
        assert self._result is not None, "a masked step was not sampled"
        return self._result

    def _fail(self, error: Exception) -> None:
        logger.exception("step %d failed", self._plan.step)
        self._runner.count_failure()
        slots = self._plan.slots[self._plan.samples]
        num_rows = len(slots)
        self._result = StepResult(
            step=self._plan.step,
            slots=slots,
            tokens=np.zeros((num_rows, 1), np.int32),
            counts=np.zeros(num_rows, np.int32),
            failed=np.ones(num_rows, np.bool_),
            error=f"{type(error).__name__}: {error}",
        )
