"""Deadlines: whoever runs out of time ends with an error, and its pages are free at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_fakes import Bench

from core.interfaces.errors import RequestError
from core.scheduler.deadlines import SPARE, Deadlines, Limit
from core.scheduler.events import StepEvents
from core.scheduler.facts import Finish


def only(events: StepEvents | None) -> RequestError:
    assert events is not None
    assert events.finish.tolist() == [Finish.ERROR]
    (error,) = events.errors.values()
    assert isinstance(error, RequestError)
    return error


def test_a_waiting_request_ends() -> None:
    bench = Bench(max_running=1)
    bench.add([1, 2], max_tokens=50)
    bench.step()
    late = bench.add([3], timeout_s=2.0)
    bench.now_s += 1.9
    assert bench.scheduler.take_events() is None
    bench.now_s += 0.2
    events = bench.scheduler.take_events()
    error = only(events)
    assert (error.status, error.code, error.param) == (504, "timeout", "timeout")
    assert "2 s" in error.message
    assert "waited" in error.message
    bench.take(events)
    assert bench.finish[late] is Finish.ERROR
    assert not len(bench.scheduler.queue)
    bench.drain()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_running_request_ends_and_gives_its_pages_back(depth: int) -> None:
    bench = Bench(cache="none", max_running=2)
    late = bench.add([1, 2, 3], max_tokens=50, timeout_s=5.0)
    other = bench.add([3, 2, 1], max_tokens=10)
    for _ in range(4):
        bench.step(depth)
    got = len(bench.output[late])
    assert got > 0
    bench.now_s += 6.0
    bench.step(depth)
    assert late in bench.finish
    bench.drain(depth)
    assert len(bench.output[other]) == 10
    bench.check_output(late)  # what it said before is right


def test_in_time_is_in_time() -> None:
    bench = Bench()
    fine = bench.add([1, 2], max_tokens=3, timeout_s=5.0)
    bench.drain()
    bench.now_s += 100
    assert bench.scheduler.take_events() is None
    assert bench.finish[fine] is Finish.LENGTH


def test_the_queue_limit_counts_waiting_alone() -> None:
    bench = Bench(max_running=1, max_queue_s=3.0)
    first = bench.add([1, 2], max_tokens=5)
    bench.step()
    second = bench.add([2, 1])
    bench.now_s += 4
    events = bench.scheduler.take_events()
    error = only(events)
    assert (error.status, error.code) == (503, "queue_timeout")
    bench.take(events)
    assert second in bench.finish
    bench.drain()
    assert bench.finish[first] is Finish.LENGTH  # it ran already


def test_an_id_that_is_used_again_has_its_own_time() -> None:
    bench = Bench()
    bench.add([1, 2], max_tokens=1, timeout_s=5.0)
    bench.drain()
    request = bench.requests.pop(0)
    assert request.timeout_s == 5.0
    bench.finish.clear()
    bench.now_s += 4
    again = bench.add([1, 2, 3], max_tokens=1)
    assert again == request.id
    bench.now_s += 2
    bench.drain()
    assert bench.finish[again] is Finish.LENGTH


def test_a_clock_that_does_not_move_ends_nobody_and_costs_no_look() -> None:
    bench = Bench()
    bench.add([1, 2], max_tokens=3)
    bench.scheduler._clock = lambda: pytest.fail("nobody has a deadline")
    bench.scheduler.schedule()


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20))), st.floats(0, 100))
def test_due_are_all_that_are_due_in_order(entries: list[tuple[float, int]], now_s: float) -> None:
    heap = Deadlines()
    for at_s, request_id in entries:
        heap.push(at_s, request_id, Limit.WHOLE, {})
    due = heap.due(now_s)
    assert [i for i, _ in due] == [i for at_s, i in sorted(entries) if at_s <= now_s]
    assert heap.pending == len(entries) - len(due)


def test_entries_of_the_dead_do_not_pile_up() -> None:
    heap = Deadlines()
    for request_id in range(10 * SPARE):
        heap.push(1000.0, request_id, Limit.WHOLE, {})
    assert heap.pending <= SPARE + 2
