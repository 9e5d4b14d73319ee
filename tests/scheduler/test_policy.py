from collections.abc import Callable

import numpy as np
import pytest
from scheduler_fakes import Bench

from core.interfaces.errors import ConfigError
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheKey, MatchResult
from core.scheduler.policy import MAX_MATCHED, SchedulePolicy, make_policy
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
        return [request.id for request in policy.order(self.queue, self.match)]


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


def test_unknown_policy() -> None:
    with pytest.raises(ConfigError, match="sjf") as error:
        make_policy("sjf")
    assert error.value.field == "scheduler.schedule_policy"


@pytest.mark.parametrize("name", POLICIES)
def test_nobody_is_passed_for_ever(name: str) -> None:
    """One poor request against an endless stream of better ones."""
    policy = make_policy(name)
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
