"""Scheduler and memory under random load: every output equals the unloaded run, nothing leaks."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_fakes import VOCAB, Bench

from core.interfaces.errors import RequestError
from core.scheduler.facts import Finish

TOKENS = st.integers(1, VOCAB - 1)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        cache=st.sampled_from(["radix", "radix", "none"]),
        eviction=st.sampled_from(["lru", "lfu", "fifo", "priority"]),
        policy=st.sampled_from(["fcfs", "lpm", "dfs-weight", "lof", "random"]),
        num_pages=st.integers(4, 24),
        page_size=st.integers(1, 8),
        num_groups=st.integers(1, 2),
        chunk_tokens=st.sampled_from([1, 2, 3, 5, 8, 16, 64]),
        max_running=st.integers(1, 6),
        context_length=st.sampled_from([16, 40, 80]),
        depth=st.integers(0, 2),
        shuffle=st.integers(0, 5),
        priority_preemption=st.booleans(),
        priority_preemption_threshold=st.integers(1, 2),
        schedule_low_priority_values_first=st.booleans(),
        low_priority_share=st.integers(0, 3),
        max_queue_s=st.sampled_from([None, None, 20.0]),
    )
    def start(self, depth: int, **options: object) -> None:
        self.bench = Bench(**options)  # type: ignore[arg-type]
        self.depth = depth
        self.failed: set[int] = set()

    @rule(
        start=st.integers(0, 2),
        length=st.integers(0, 24),
        tail=st.lists(TOKENS, max_size=6),
        namespace=st.sampled_from([b"", b"", b"a"]),
        priority=st.sampled_from([0, 0, 0, 1, 3]),
        tenant=st.sampled_from(["", "", "a", "b"]),
        timeout_s=st.sampled_from([None, None, None, 3.0, 50.0]),
        max_tokens=st.one_of(st.none(), st.integers(1, 24)),
        min_tokens=st.integers(0, 4),
        ignore_eos=st.booleans(),
        stop=st.lists(TOKENS, max_size=1),
    )
    def add(self, start, length, tail, namespace, max_tokens, min_tokens, ignore_eos, stop, **whose) -> None:
        prompt = [(start + i) % (VOCAB - 1) + 1 for i in range(length)] + tail
        self._add(prompt, namespace, max_tokens, min_tokens, ignore_eos, stop, **whose)

    @precondition(lambda self: hasattr(self, "bench") and self.bench.finish)
    @rule(data=st.data(), tail=st.lists(TOKENS, max_size=4), max_tokens=st.integers(1, 12))
    def next_turn(self, data: st.DataObject, tail: list[int], max_tokens: int) -> None:
        """A conversation goes on from a former answer."""
        former = data.draw(st.sampled_from(sorted(self.bench.finish)))
        prompt = self.bench.prompts[former] + self.bench.output[former] + tail
        self._add(prompt, self.bench.requests[former].namespace, max_tokens, 0, False, [])

    def _add(self, prompt, namespace, max_tokens, min_tokens, ignore_eos, stop, **whose) -> None:
        bench = self.bench
        if max_tokens is not None:
            min_tokens = min(min_tokens, max_tokens)
        too_long = not prompt or len(prompt) >= bench.facts.context_length
        too_long |= bench.memory.num_pages_for(len(prompt) + 1) > bench.memory.capacity
        sampling = {
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "ignore_eos": ignore_eos,
            "stop_token_ids": tuple(stop),
        }
        try:
            bench.add(prompt, namespace=namespace, **whose, **sampling)
        except RequestError:
            assert too_long
        else:
            assert not too_long

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.bench.requests:
            return
        request_id = data.draw(st.sampled_from(sorted(self.bench.requests)))
        alive = request_id in self.bench.scheduler._requests
        assert self.bench.scheduler.cancel(request_id) == alive
        assert not self.bench.scheduler.cancel(request_id)

    @rule(steps=st.integers(1, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.bench.step(self.depth)

    @rule(seconds=st.floats(0.1, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.bench.now_s += seconds

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if self.bench.requests:
            self.bench.step(self.depth, {data.draw(st.sampled_from(sorted(self.bench.requests)))})

    @rule()
    def finish_all(self) -> None:
        self.bench.drain(self.depth)
        self._check_outputs()

    @invariant()
    def conserved(self) -> None:
        if hasattr(self, "bench"):
            self.bench.memory.check_all()
            shares, live = self.bench.scheduler.shares, self.bench.scheduler._requests.values()
            for tenant in shares.counters():
                assert shares._live[shares.index(tenant)] == sum(r.tenant == tenant for r in live)
                waiting = sum(r.tenant == tenant for r in self.bench.scheduler.queue)
                assert shares._waiting[shares.index(tenant)] == waiting

    def _check_outputs(self) -> None:
        for request_id in self.bench.finish:
            self.bench.check_output(request_id)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.drain(self.depth)
            self._check_outputs()
            assert all(finish != Finish.NONE for finish in self.bench.finish.values())
            if self.bench.memory.cache.stats().cached_pages:
                self.bench.scheduler.flush_cache()
            assert self.bench.memory.stats().free == self.bench.memory.capacity


SchedulerMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSchedulerMachine = SchedulerMachine.TestCase
