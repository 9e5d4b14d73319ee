"""Priorities: who gives way, who does not, and that nobody starves."""

from __future__ import annotations

import pytest
from scheduler_fakes import Bench

from core.scheduler.preemption import MAX_DISPLACED


def running(bench: Bench) -> set[int]:
    return {r.id for r in bench.scheduler.table.requests if r is not None}


@pytest.mark.parametrize("depth", [0, 1])
def test_the_newest_of_the_lowest_gives_way_for_lack_of_a_slot(depth: int) -> None:
    bench = Bench(max_running=3, priority_preemption=True, priority_preemption_threshold=2)
    older = bench.add([1, 2, 3], priority=0, max_tokens=20)
    newer = bench.add([2, 3, 4], priority=0, max_tokens=20)
    better = bench.add([3, 4, 5], priority=1, max_tokens=20)
    for _ in range(4):
        bench.step(depth)
    urgent = bench.add([4, 5, 6], priority=3, max_tokens=10)
    for _ in range(3):
        bench.step(depth)
    assert running(bench) == {older, better, urgent}
    assert bench.requests[newer].displaced == 1
    bench.drain(depth)
    for request_id in bench.requests:
        bench.check_output(request_id)  # the displaced one, too, says what it would have said


def test_less_than_the_threshold_waits() -> None:
    bench = Bench(max_running=1, priority_preemption=True, priority_preemption_threshold=2)
    first = bench.add([1, 2, 3], max_tokens=10)
    bench.step()
    bench.add([3, 2, 1], priority=1)
    for _ in range(3):
        bench.step()
    assert running(bench) == {first}
    bench.drain()
    assert bench.scheduler.stats()["displaced_total"] == 0


def test_off_by_default() -> None:
    bench = Bench(max_running=1)
    first = bench.add([1, 2, 3], max_tokens=10)
    bench.step()
    bench.add([3, 2, 1], priority=100)
    bench.step()
    assert running(bench) == {first}
    bench.drain()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("cache", ["radix", "none"])
def test_giving_way_for_lack_of_memory(depth: int, cache: str) -> None:
    bench = Bench(
        cache=cache, num_pages=11, page_size=4, max_running=8, priority_preemption=True, priority_preemption_threshold=1
    )
    low = [bench.add([1 + i, 2, 3, 4, 5, 6, 1, 2], max_tokens=12) for i in range(4)]
    for _ in range(3):
        bench.step(depth)
    urgent = bench.add([6] * 26, priority=1, max_tokens=2)
    steps = 0
    while urgent not in bench.finish:
        bench.step(depth)
        steps += 1
    assert steps <= 8
    assert not set(low) & set(bench.finish)
    bench.drain(depth)
    for request_id in bench.requests:
        bench.check_output(request_id)


def test_nobody_gives_way_for_one_that_would_not_fit_all_the_same() -> None:
    bench = Bench(num_pages=11, page_size=4, max_running=8, priority_preemption=True, priority_preemption_threshold=1)
    high = bench.add([2] * 16, priority=5, max_tokens=8)
    low = bench.add([1] * 4, max_tokens=8)
    bench.step()
    bench.add([3] * 30, priority=4, max_tokens=1)  # needs what `high` holds
    bench.step()
    assert running(bench) == {high, low}
    bench.drain()


def test_no_one_gives_way_for_ever() -> None:
    """An endless stream of urgent requests: the low one is displaced so often, then stays and ends."""
    bench = Bench(max_running=1, priority_preemption=True, priority_preemption_threshold=1, low_priority_share=0)
    low = bench.add([1, 2, 3], max_tokens=12)
    turns = 0
    while low not in bench.finish:
        if not any(r.priority for r in bench.scheduler.queue) and turns % 3 == 0:
            bench.add([4, 5, 6], priority=5, max_tokens=1)
        bench.step()
        turns += 1
        assert turns < 200
    assert bench.requests[low].displaced == MAX_DISPLACED
    bench.check_output(low)
    bench.drain()


@pytest.mark.parametrize("preemption", [False, True])
def test_a_low_priority_has_its_share_of_a_full_server(preemption: bool) -> None:
    bench = Bench(max_running=1, low_priority_share=4, priority_preemption=preemption, priority_preemption_threshold=1)
    low = [bench.add([1, 2, 3 + i], max_tokens=4) for i in range(3)]
    lower = bench.add([3, 2, 1], priority=-1, max_tokens=4)
    turns = 0
    while not {*low, lower} <= set(bench.finish):
        while sum(r.priority == 9 for r in bench.scheduler.queue) < 2:
            bench.add([4, 5, 6], priority=9, max_tokens=2)
        bench.step()
        turns += 1
        assert turns < 400
    high = sum(bench.requests[i].priority == 9 for i in bench.finish)
    assert high >= 3 * 4  # and the high ones had theirs
    assert all(bench.requests[i].displaced <= 1 for i in low)
    bench.drain()


def test_a_share_of_zero_is_strict() -> None:
    bench = Bench(max_running=1, low_priority_share=0)
    bench.add([9 % 7, 1], priority=1, max_tokens=1)
    low = bench.add([1, 2, 3], max_tokens=1)
    for _ in range(100):
        bench.add([4, 5], priority=1, max_tokens=1)
        bench.step()
    assert low not in bench.finish
    bench.drain()


def test_low_values_first() -> None:
    bench = Bench(max_running=1, schedule_low_priority_values_first=True)
    bench.add([1], max_tokens=1)
    bench.step()
    late, soon = bench.add([2], priority=5), bench.add([3], priority=-5)
    order = [r.id for r in bench.scheduler.policy.order(bench.scheduler.queue, bench.memory.match)]
    assert order == [soon, late]
    bench.drain()


def test_a_whole_slate_of_urgent_ones_takes_a_whole_slate_of_slots() -> None:
    bench = Bench(max_running=4, priority_preemption=True, priority_preemption_threshold=1, num_pages=129)
    for i in range(4):
        bench.add([1 + i, 2, 3], max_tokens=20)
    for _ in range(2):
        bench.step(1)
    urgent = {bench.add([1 + i, 5, 6], priority=1, max_tokens=20) for i in range(3)}
    for _ in range(3):
        bench.step(1)
    assert urgent <= running(bench)
    assert bench.scheduler.stats()["displaced_total"] == 3  # not one more than is needed
    bench.drain(1)
