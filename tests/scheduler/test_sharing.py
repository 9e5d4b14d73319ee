"""Requests that arrive together share a prompt's computation."""

import pytest
from scheduler_fakes import Bench

PROMPT = [1, 2, 3, 4, 5, 6] * 4


@pytest.mark.parametrize("depth", [0, 1])
def test_samples_of_one_prompt_compute_it_once(depth: int) -> None:
    bench = Bench(max_running=8)
    ids = [bench.add(PROMPT, max_tokens=3) for _ in range(6)]
    bench.drain(depth)
    assert [bench.cached[i] for i in ids] == [0, 20, 20, 20, 20, 20]
    prefilled = sum(int(plan.q_lens[plan.num_decodes :].sum()) for plan in bench.plans)
    assert prefilled == 24 + 5 * 4
    for i in ids:
        bench.check_output(i)


def test_nobody_waits_for_little() -> None:
    bench = Bench()
    bench.add(PROMPT)
    other = bench.add(PROMPT[:8] + [1] * 16)
    bench.step()
    assert bench.requests[other].slot >= 0
    bench.drain()


def test_namespaces_do_not_wait_for_each_other() -> None:
    bench = Bench()
    bench.add(PROMPT, namespace=b"one")
    bench.add(PROMPT, namespace=b"two")
    bench.step()
    assert bench.scheduler.stats()["running"] == 2
    bench.drain()


def test_those_behind_a_held_request_go_on() -> None:
    bench = Bench(chunk_tokens=16)
    bench.add(PROMPT)
    held = bench.add(PROMPT)
    bench.step()
    other = bench.add([6, 6, 6])
    bench.step()
    assert bench.requests[held].slot < 0
    assert bench.requests[other].slot >= 0
    bench.step()
    assert bench.cached[other] == 0
    bench.drain()
    assert bench.cached[held] == 20


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_leader_that_leaves_holds_nobody(how: str) -> None:
    bench = Bench()
    leader, follower = bench.add(PROMPT), bench.add(PROMPT)
    bench.launch()
    if how == "cancel":
        bench.scheduler.cancel(leader)
    bench.complete({leader} if how == "fail" else set())
    assert bench.requests[follower].leader_id == leader
    bench.step()
    assert bench.cached[follower] == 0
    bench.drain()
    assert len(bench.scheduler.sharing) == 0
    bench.check_output(follower)


def test_a_request_waits_for_one_leader_only() -> None:
    bench = Bench()
    first, second, third = (bench.add(PROMPT) for _ in range(3))
    bench.launch()
    bench.complete({first})
    bench.step()
    assert bench.requests[second].slot >= 0
    assert bench.requests[third].slot >= 0
    bench.drain()


def test_without_a_cache_nobody_waits_twice() -> None:
    bench = Bench(cache="none")
    for _ in range(2):
        bench.add(PROMPT, max_tokens=1)
    bench.drain()
    for _ in range(3):
        bench.add(PROMPT)
    bench.step()
    assert bench.scheduler.stats()["running"] == 3
    bench.drain()
