"""ThreadExecutor: order, immediate return, exceptions at wait."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from core.interfaces.step import StepPlan, StepResult
from core.runner.async_executor import ThreadExecutor
from core.runner.executor import InProcessExecutor

EMPTY = np.empty(0, np.int32)


def plan(step: int) -> StepPlan:
    return StepPlan(step, EMPTY, 0, EMPTY, EMPTY, EMPTY.astype(np.bool_))


class Handle:
    def __init__(self, step: int) -> None:
        self.step = step

    def done(self) -> bool:
        return True

    def sample(self, masks: object) -> None:
        raise AssertionError("no step here is masked")

    def wait(self) -> StepResult:
        return StepResult(self.step, EMPTY, EMPTY.reshape(0, 1), EMPTY, EMPTY.astype(np.bool_))


class SlowRunner:
    """Launches only after `gate` opens; raises for odd steps."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.seen: list[int] = []
        self.threads: set[int] = set()

    def launch(self, plan: StepPlan) -> Handle:
        assert self.gate.wait(10)
        self.seen.append(plan.step)
        self.threads.add(threading.get_ident())
        if plan.step % 2:
            raise ValueError(f"step {plan.step}")
        return Handle(plan.step)


def test_thread_executor_returns_at_once_keeps_order_and_delivers_exceptions() -> None:
    runner = SlowRunner()
    executor = ThreadExecutor(runner)
    handles = [executor.launch(plan(step)) for step in range(6)]
    assert not any(handle.done() for handle in handles)
    assert runner.seen == []
    runner.gate.set()
    for step, handle in enumerate(handles):
        if step % 2:
            with pytest.raises(ValueError, match=f"step {step}"):
                handle.wait()
        else:
            assert handle.wait().step == step
        assert handle.done()
    executor.close()
    assert runner.seen == list(range(6))
    assert runner.threads.isdisjoint({threading.get_ident()})
    with pytest.raises(RuntimeError):
        executor.launch(plan(6))


def test_close_finishes_what_was_launched() -> None:
    runner = SlowRunner()
    executor = ThreadExecutor(runner)
    handle = executor.launch(plan(0))
    runner.gate.set()
    executor.close()
    assert handle.done()


def test_in_process_executor_runs_in_the_callers_thread() -> None:
    runner = SlowRunner()
    runner.gate.set()
    executor = InProcessExecutor(runner)
    assert executor.launch(plan(2)).wait().step == 2
    executor.close()
    assert runner.threads == {threading.get_ident()}
