import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from scheduler_fakes import Bench, make_policy

from core.interfaces.context import PluginContext
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheKey, MatchResult
from core.interfaces.schedule import Match, SchedulePolicy, StepLoad
from core.scheduler.facts import Finish
from core.scheduler.policies import MAX_MATCHED
from core.scheduler.policy import AdmissionOrder
from core.scheduler.queue import WaitingQueue
from core.scheduler.request import Request

POLICIES = ["fcfs", "lpm", "dfs-weight", "lof", "random"]


class Line:
    """A queue whose cached prefixes are given by hand: the request's id -> its page numbers."""

    def __init__(self) -> None:
        self.queue = WaitingQueue()
        self.cached: dict[int, list[int]] = {}
        self.num_matches = 0

    def add(self, *cached: int, priority: int = 0, max_tokens: int = 5, preemptions: int = 0) -> Request:
        order = len(self.cached)
        request = Request(order, np.array([order], np.int32), SamplingParams(max_tokens=max_tokens), 0, b"", priority)
        request.order, request.max_len, request.preemptions = order, 1 + max_tokens, preemptions
        self.cached[order] = list(cached)
        self.queue.push(request)
        return request

    def match(self, key: CacheKey) -> MatchResult:
        self.num_matches += 1
        pages = np.array([self.cached[int(key.tokens[0])]], np.int32).reshape(1, -1)
        return MatchResult(pages.shape[1], pages)

    def order(self, policy: SchedulePolicy) -> list[int]:
        return [request.id for request in AdmissionOrder(policy, 64).order(self.queue, self.match)]


def test_fcfs_is_first_come_within_priority() -> None:
    line = Line()
    for priority in (0, 1, 0, 2, 1):
        line.add(priority=priority)
    assert line.order(make_policy("fcfs")) == [3, 1, 4, 0, 2]
    assert line.num_matches == 0


@pytest.mark.parametrize("name", POLICIES)
def test_priority_and_preemption_come_before_the_policy(name: str) -> None:
    line = Line()
    line.add(1, 2, 3, max_tokens=100)
    line.add(priority=1)
    line.add(preemptions=1)
    assert line.order(make_policy(name)) == [1, 2, 0]


def test_lpm_takes_the_longest_match_first() -> None:
    line = Line()
    for cached in ((), (1,), (1, 2, 3), (1, 2)):
        line.add(*cached)
    line.add(4, 5)
    assert line.order(make_policy("lpm")) == [2, 3, 4, 1, 0]


@pytest.mark.parametrize("name", ["lpm", "dfs-weight"])
def test_matching_policies_fall_back_to_fcfs_in_a_long_queue(name: str) -> None:
    line = Line()
    for i in range(MAX_MATCHED):
        line.add(*range(1, 2 + i % 5))
    assert line.order(make_policy(name)) != list(range(MAX_MATCHED))
    assert line.num_matches == MAX_MATCHED
    line.add(1)
    assert line.order(make_policy(name)) == list(range(MAX_MATCHED + 1))
    assert line.num_matches == MAX_MATCHED


def test_dfs_weight_keeps_branches_together_heaviest_first() -> None:
    line = Line()
    line.add(9)  # 0: a branch of its own
    line.add(1, 2)  # 1
    line.add()  # 2: nothing cached
    line.add(1, 3, 4)  # 3
    line.add(1, 3, 5)  # 4
    line.add(1)  # 5
    line.add(1, 3, 5)  # 6
    assert line.order(make_policy("dfs-weight")) == [4, 6, 3, 1, 5, 0, 2]


def test_lof_takes_the_longest_output_first() -> None:
    line = Line()
    for max_tokens in (3, 9, 5, 9):
        line.add(max_tokens=max_tokens)
    assert line.order(make_policy("lof")) == [1, 3, 2, 0]


def test_random_is_a_permutation_and_repeats_with_its_seed() -> None:
    line = Line()
    for _ in range(20):
        line.add()
    first = line.order(make_policy("random", seed=1))
    assert sorted(first) == list(range(20))
    assert first == line.order(make_policy("random", seed=1))
    assert first != line.order(make_policy("random", seed=2))


@pytest.mark.parametrize("name", POLICIES)
def test_nobody_is_passed_for_ever(name: str) -> None:
    """One poor request against an endless stream of better ones."""
    policy = AdmissionOrder(make_policy(name), 64)
    line = Line()
    poor = line.add(max_tokens=1)
    line.add(1, max_tokens=50)
    line.add(1, 2, max_tokens=50)
    passed = 0
    while passed <= policy.max_bypasses:
        first = policy.order(line.queue, line.match)[0]
        policy.admitted(line.queue, first)
        line.queue.remove(first)
        if first is poor:
            break
        passed += 1
        line.add(1, 2, 3, max_tokens=50)
    assert first is poor
    if name in ("lpm", "dfs-weight", "lof"):
        assert passed == policy.max_bypasses


@pytest.mark.parametrize("name", ["lpm", "dfs-weight", "lof"])
def test_a_starved_request_runs_in_a_loaded_scheduler(name: str) -> None:
    bench = Bench(policy=name, max_running=1, num_pages=33)
    bench.scheduler.policy.max_bypasses = 5
    bench.add([1] * 12)
    bench.step()
    poor = bench.add([5, 5, 5], max_tokens=1)
    finished = 0
    while poor not in bench.finish:
        bench.add([1] * 12, max_tokens=4)
        for _ in range(4):
            bench.step()
        finished += 1
        assert finished < 30
    assert bench.requests[poor].bypasses == 5
    bench.drain()


def _running(bench: Bench) -> set[int]:
    return {int(i) for i in bench.scheduler.table.request_id if i >= 0}


@pytest.mark.parametrize("name", POLICIES)
def test_admissions_follow_the_policy(name: str) -> None:
    bench = Bench(policy=name, max_running=1)
    bench.add([1, 2, 3, 4, 5, 6, 1, 2, 3], max_tokens=2)
    bench.drain()
    blocker = bench.add([6, 6, 6], max_tokens=2)
    bench.step()
    plain = bench.add([2, 2, 2, 2, 2], max_tokens=2)
    cached = bench.add([1, 2, 3, 4, 5, 6, 1, 2, 3, 3], max_tokens=3)
    while blocker not in bench.finish:
        bench.step()
    bench.step()
    admitted = _running(bench) | set(bench.finish) - {0, blocker}
    expected: dict[str, Callable[[], bool]] = {
        "fcfs": lambda: admitted == {plain},
        "lpm": lambda: admitted == {cached},
        "dfs-weight": lambda: admitted == {cached},
        "lof": lambda: admitted == {cached},
        "random": lambda: len(admitted) == 1,
    }
    assert expected[name]()
    bench.drain()


class _Broken(SchedulePolicy):
    """Does as `how` says."""

    how = ""

    def rank(self, waiting: Sequence[Any], match: Match) -> Sequence[Any]:
        match self.how:
            case "loses":
                return waiting[1:]
            case "repeats":
                return [waiting[0], *waiting[:-1]]
            case "adds":
                return [*waiting, waiting[0]]
            case "raises":
                raise KeyError("weights")
            case "none":
                return None  # type: ignore[return-value]
            case "strange":
                return list(range(len(waiting)))
        return waiting[::-1]


def _broken(how: str) -> SchedulePolicy:
    policy = _Broken(PluginContext())
    policy.how = how
    return policy


def _submit(bench: Bench) -> list[int]:
    bench.add([6, 6, 6], max_tokens=2)
    bench.step()
    return [bench.add([i, 2, 2], max_tokens=2) for i in range(4)]


@pytest.mark.parametrize("how", ["loses", "repeats", "adds", "raises", "none", "strange"])
def test_a_policy_that_breaks_its_word_costs_nobody_an_answer(how: str, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(policy=_broken(how), max_running=1)
    waiting = _submit(bench)
    with caplog.at_level(logging.ERROR):
        bench.drain()
    assert all(bench.finish[request] is Finish.LENGTH for request in waiting)
    assert list(bench.finish) == [0, *waiting], "first come, first served from the failure on"
    reports = [record for record in caplog.records if "test_policy._Broken" in record.getMessage()]
    assert len(reports) == 1, "reported once, by name"
    assert bench.scheduler.stats()["policy_failed"] == 1
    for request in waiting:
        bench.check_output(request)


def test_a_policy_that_keeps_its_word_is_followed() -> None:
    bench = Bench(policy=_broken(""), max_running=1)
    waiting = _submit(bench)
    bench.drain()
    assert list(bench.finish) == [0, *waiting[::-1]]
    assert bench.scheduler.stats()["policy_failed"] == 0


class _Budget(SchedulePolicy):
    """Gives each step what `budgets` says, and keeps what it was told."""

    reorders: ClassVar[bool] = False
    plans_steps: ClassVar[bool] = True
    budget: Any = 3

    def __init__(self, ctx: PluginContext, seed: int = 0) -> None:
        super().__init__(ctx, seed)
        self.loads: list[StepLoad] = []

    def rank(self, waiting: Sequence[Any], match: Match) -> Sequence[Any]:
        raise AssertionError("a policy that does not reorder is not asked")

    def step_tokens(self, load: StepLoad) -> int:
        self.loads.append(load)
        return self.budget


def test_step_tokens_is_the_budget_of_every_step_and_decodes_are_never_left_out() -> None:
    policy = _Budget(PluginContext())
    policy.budget = 12
    bench = Bench(policy=policy, chunk_tokens=16)
    requests = [bench.add([i] * 3, max_tokens=6) for i in range(1, 6)]
    bench.step()
    policy.budget = 1
    bench.drain()
    first, *rest = bench.plans
    assert first.num_tokens == 12
    assert [plan.num_tokens for plan in rest[:5]] == [4] * 5, "4 decodes run though the budget is 1, the fifth waits"
    assert policy.loads[0] == StepLoad(0, 5, 16)
    assert policy.loads[1] == StepLoad(4, 1, 16, last_tokens=12)
    for request in requests:
        bench.check_output(request)


@pytest.mark.parametrize(("given", "used"), [(0, 1), (-5, 1), (10**9, 16), (2.9, 2)])
def test_step_tokens_is_cut_to_its_range(given: Any, used: int) -> None:
    policy = _Budget(PluginContext())
    policy.budget = given
    bench = Bench(policy=policy, chunk_tokens=16)
    bench.add(list(range(1, 7)) * 6, max_tokens=1)
    bench.drain()
    assert bench.plans[0].num_tokens == used


def test_a_budget_that_is_no_number_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    policy = _Budget(PluginContext())
    policy.budget = "many"
    bench = Bench(policy=policy, chunk_tokens=16)
    request = bench.add([1] * 40, max_tokens=2)
    with caplog.at_level(logging.ERROR):
        bench.drain()
    assert bench.plans[0].num_tokens == 16
    assert sum("_Budget" in record.getMessage() for record in caplog.records) == 1
    bench.check_output(request)
