"""The other ranks' processes: their phases, and every way in which one of them can be lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from engine_fakes import FakeHandle, add, make_engine

import core.engine.ranks as module
from core.engine.control import EngineControl
from core.engine.engine import Engine, EngineFailed
from core.engine.rank_executor import MultiRankExecutor
from core.engine.ranks import Ranks
from core.interfaces.errors import ConfigError, CoreError, EngineDead, EngineError
from core.interfaces.step import StepPlan, StepResult, TokenMasks
from core.runner.executor import InProcessExecutor, StepHandle


@contextmanager
def ranks(size: int = 3, told: dict[str, Any] | None = None, **options: Any) -> Iterator[Ranks]:
    made = Ranks(size, json.dumps(told or {}).encode(), b"", module="fake_rank", **options)
    try:
        yield made
    finally:
        made.close()


def plan(step: int) -> StepPlan:
    one = np.ones(1, np.int32)
    return StepPlan(step, np.zeros(1, np.int32), 1, one, one * 3, np.ones(1, np.bool_))


def ask(group: Ranks, phase: str = "weights", value: int = 0) -> list[dict[str, int]]:
    with group.phase(phase, value) as result:
        pass
    return [answer.values for answer in result.answers]


def drive(engine: Engine) -> None:
    for _ in range(50):
        engine.step()


def lose(group: Ranks, step: int = 5) -> None:
    """Have a rank misbehave in a step, and wait until that is known."""
    ask(group)
    group.launch(plan(step))
    deadline_s = time.monotonic() + 20
    while group.lost is None and time.monotonic() < deadline_s:
        time.sleep(0.01)


def test_phases_and_plans_reach_every_rank_and_close_ends_them() -> None:
    with ranks(4) as group:
        answers = ask(group, "pages", 7)
        assert [answer["rank"] for answer in answers] == [1, 2, 3]
        assert {answer["value"] for answer in answers} == {7}
        for step in range(3):
            group.launch(plan(step))
        assert [answer["steps"] for answer in ask(group, "warm-up")] == [3, 3, 3]
        pids = [answer["pid"] for answer in answers]
        assert all(psutil.pid_exists(pid) for pid in pids)
        group.check()
    assert not any(psutil.pid_exists(pid) for pid in pids), "reaped"
    assert group.lost is None, "leaving when told is no loss"
    group.close()


def test_a_plan_is_larger_than_the_lines_buffer() -> None:
    from core.interfaces.params import SamplingParams
    from core.interfaces.step import Admission

    with ranks(2) as group:
        ask(group)
        large = plan(1)
        large.admissions = [Admission(0, 1, np.arange(1 << 20, dtype=np.int32), 1 << 20, SamplingParams(), 0)]
        group.launch(large)
        assert ask(group, "warm-up")[0]["steps"] == 1


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("refuses", ConfigError, r"^rank 2: the sizes do not divide"),
        ("dies", EngineDead, r"^rank 2 \(process \d+\) was killed by signal 9 in phase 'weights' of the start"),
        ("leaves", EngineDead, r"^rank 2 \(process \d+\) left with exit code 7 in phase 'weights'"),
        ("hangs", EngineError, r"^rank 2 gave no sign of life for 2 s in phase 'weights' of the start"),
    ],
)
def test_a_rank_is_lost_while_starting(
    how: str, error: type[CoreError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    told = {"rank": 2, "how": how, "at": "weights"}
    with ranks(3, told, on_loss=lambda: lost.append(how), timeout_s=2) as group:
        with pytest.raises(error, match=text) as caught:
            ask(group)
        assert caught.value.hint
        with pytest.raises(EngineDead, match="rank 2"):
            group.launch(plan(0))
        if how == "hangs":  # and does not leave by itself
            monkeypatch.setattr(module, "LEAVE_TIMEOUT_S", 0.3)
    assert lost == [how], "once"


@pytest.mark.parametrize(
    ("how", "text"),
    [("dies", r"^rank 1 \(process \d+\) was killed by signal 9$"), ("refuses", "^rank 1: the sizes do not divide$")],
)
def test_a_rank_is_lost_in_a_step(how: str, text: str) -> None:
    lost = threading.Event()
    with ranks(3, {"rank": 1, "how": how, "at": 5}, on_loss=lost.set) as group:
        lose(group)
        assert lost.wait(10), "collectives are ended"
        for call in (group.check, lambda: group.launch(plan(6))):
            with pytest.raises(EngineDead) as caught:
                call()
            assert re.search(text, caught.value.message)


def test_the_reason_comes_before_what_follows_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collective that breaks on rank 0 is not the cause."""
    with (
        ranks(2, {"rank": 1, "how": "dies", "at": "join"}) as group,
        pytest.raises(EngineDead, match="killed by signal 9") as caught,
        group.phase("join", together=True),
    ):
        raise RuntimeError("connection closed by peer")
    assert isinstance(caught.value.__cause__, RuntimeError)
    monkeypatch.setattr(module, "TELL_TIMEOUT_S", 0.1)
    with ranks(2) as group:
        with pytest.raises(RuntimeError, match="my own"), group.phase("join", together=True):
            raise RuntimeError("my own")
        assert group.dead("out of memory").message == "rank 0 failed: out of memory"


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with ranks(2) as group, pytest.raises(EngineError, match="could not be started: FileNotFoundError"):
        ask(group)


class _Runner:
    """Rank 0 of steps that only count."""

    def __init__(self, error: str | None = None) -> None:
        self.error = error
        self.sampled: list[TokenMasks | None] = []

    def launch(self, plan: StepPlan) -> StepHandle:
        return self  # type: ignore[return-value]

    def sample(self, masks: TokenMasks | None) -> None:
        self.sampled.append(masks)

    def done(self) -> bool:
        return True

    def wait(self) -> StepResult:
        tokens = np.zeros((1, 1), np.int32)
        one = np.ones(1, np.int32)
        return StepResult(0, np.zeros(1, np.int32), tokens, one, np.zeros(1, np.bool_), error=self.error)


def test_an_executor_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    with ranks(2, {"rank": 1, "how": "dies", "at": 5}) as group:
        ask(group)
        runner = _Runner()
        executor = MultiRankExecutor(InProcessExecutor(runner), group, lambda: left.append(True))
        step = executor.launch(plan(1))
        step.sample(None)
        assert (step.done(), step.wait().error, runner.sampled) == (True, None, [None])
        late = executor.launch(plan(5))
        while group.lost is None:
            time.sleep(0.01)
        with pytest.raises(EngineDead, match="rank 1"):
            late.wait()
        executor.close()
    assert left == [True]
    monkeypatch.setattr(module, "TELL_TIMEOUT_S", 0.1)
    with ranks(2) as group:
        ask(group)
        failing = MultiRankExecutor(InProcessExecutor(_Runner("OutOfMemoryError: no")), group)
        with pytest.raises(EngineDead, match=r"^rank 0 failed: OutOfMemoryError: no$"):
            failing.launch(plan(1)).wait()


@pytest.mark.parametrize("at", ["launch", "wait"])
def test_an_engine_whose_executor_is_dead_gives_up_at_once(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()

    def fail(*_: object) -> None:
        raise EngineDead("rank 1 is gone")

    engine.submit(add(1, [3], max_tokens=5))
    engine.step()
    if at == "launch":
        monkeypatch.setattr(engine._executor, "launch", fail)
    else:
        monkeypatch.setattr(FakeHandle, "wait", fail)
    with pytest.raises(EngineFailed, match=r"^rank 1 is gone$"):
        drive(engine)


def test_an_idle_engine_is_told_and_tells_of_the_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    class Others:
        lost = False
        level = ""

        def check(self) -> None:
            if self.lost:
                raise EngineDead("rank 1 is gone")

        def set_log_level(self, level: str) -> None:
            self.level = level

    monkeypatch.setattr("core.engine.control.LOGGERS", ())
    engine = make_engine()
    engine.check()
    EngineControl(engine).run("set_log_level", {"level": "info"})
    engine._ranks = others = Others()
    engine.check()
    EngineControl(engine).run("set_log_level", {"level": "info"})
    assert others.level == "info"
    others.lost = True
    with pytest.raises(EngineFailed, match="rank 1 is gone"):
        engine.check()


SCRIPT = """
import json, sys, time
from engine_fakes import FakeHandle, add, make_engine

import core.engine.ranks as module
from core.engine.ranks import Ranks
module.STUCK_S = 0.3
group = Ranks(2, json.dumps({{"rank": 1, "how": "dies", "at": "weights"}}).encode(), b"", module="fake_rank",
              leave_if_stuck={leave})
with group.phase("weights", together={together}):
    time.sleep({seconds})  # as in a collective that nobody ends
"""


def run(script: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_a_process_of_its_own_leaves_if_its_device_is_stuck() -> None:
    done = run(SCRIPT.format(leave=True, together=True, seconds=50))
    assert done.returncode == module.EXIT_STUCK
    assert "was killed by signal 9" in done.stderr


@pytest.mark.parametrize(("leave", "together"), [(False, True), (True, False)])
def test_it_stays_where_it_is_not_stuck_or_not_the_engines_own(leave: bool, together: bool) -> None:
    done = run(SCRIPT.format(leave=leave, together=together, seconds=2))
    assert done.returncode == 1
    assert "EngineDead: rank 1" in done.stderr


def test_an_interpreter_that_ends_ends_its_ranks() -> None:
    script = (
        "from core.engine.ranks import Ranks\n"
        "group = Ranks(2, b'{}', b'', module='fake_rank')\n"
        "with group.phase('weights') as result: pass\n"
        "print(result.answers[0].values['pid'])\n"
    )
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert not psutil.pid_exists(int(done.stdout))
