"""Fairness between tenants: service in the ratio of weights, no credit from idleness, nobody starves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_fakes import Bench

from core.scheduler.fairness import OUTPUT_COST, PROMPT_COST, TenantShares


class Load:
    """Tenants that always have `depth` requests waiting, each of `length` prompt and `output` generated tokens."""

    def __init__(self, bench: Bench, depth: int = 3) -> None:
        self.bench = bench
        self.depth = depth
        self.owner: dict[int, str] = {}
        self.next = 0

    def add(self, tenant: str, weight: float, length: int, output: int, **more: object) -> int:
        self.next += 1  # no two prompts share a prefix
        prompt = [1 + self.next % 5, 1 + self.next // 5 % 5, 1 + self.next // 25 % 5, *([6] * max(length - 3, 1))]
        request_id = self.bench.add(prompt, tenant=tenant, weight=weight, max_tokens=output, **more)
        self.owner[request_id] = tenant
        return request_id

    def keep(self, tenant: str, weight: float, length: int, output: int) -> None:
        waiting = sum(r.tenant == tenant for r in self.bench.scheduler.queue)
        for _ in range(self.depth - waiting):
            self.add(tenant, weight, length, output)

    def served(self, tenant: str, since: int = 0) -> float:
        """Cost of what `tenant` has been given."""
        total = 0.0
        for request_id, owner in self.owner.items():
            if owner == tenant and self.bench.requests[request_id].cached_tokens >= 0:
                total += PROMPT_COST * (
                    len(self.bench.prompts[request_id]) - self.bench.requests[request_id].cached_tokens
                )
                total += OUTPUT_COST * len(self.bench.output[request_id])
        return total - since


@settings(max_examples=25, deadline=None)
@given(
    weights=st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0, 0.5])),
    lengths=st.tuples(st.integers(4, 16), st.integers(4, 16)),
    outputs=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    depth=st.integers(0, 1),
)
def test_backlogged_tenants_are_served_by_their_weights(weights, lengths, outputs, depth) -> None:
    bench = Bench(max_running=3, cache="none")
    load = Load(bench, depth=8)  # more than are admitted in a step: always backlogged
    names = ("a", "b")
    for _ in range(150):
        for name, weight, length, output in zip(names, weights, lengths, outputs, strict=True):
            load.keep(name, weight, length, output)
        bench.step(depth)
    shares = [load.served(name) / weight for name, weight in zip(names, weights, strict=True)]
    # The bound of the paper: what a whole batch of the most expensive requests costs, by the smaller weight.
    cost = max(PROMPT_COST * length + OUTPUT_COST * output for length, output in zip(lengths, outputs, strict=True))
    assert abs(shares[0] - shares[1]) <= 2 * (bench.facts.max_running + 1) * cost / min(weights)
    assert min(shares) > 0
    assert max(shares) > 4 * cost / min(weights) or sum(outputs) > 8  # the run was long enough to mean something


def test_an_idle_tenant_saves_nothing_up() -> None:
    bench = Bench(max_running=1, cache="none")
    load = Load(bench)
    load.add("b", 1.0, 5, 1)
    bench.drain()
    for _ in range(200):
        load.keep("a", 1.0, 5, 3)
        bench.step()
    assert load.served("a") > 20 * load.served("b")
    before = {name: load.served(name) for name in "ab"}
    for _ in range(120):
        load.keep("a", 1.0, 5, 3)
        load.keep("b", 1.0, 5, 3)
        bench.step()
    gained = {name: load.served(name) - before[name] for name in "ab"}
    assert abs(gained["a"] - gained["b"]) <= 4 * (5 * PROMPT_COST + 3 * OUTPUT_COST)


def test_a_flood_does_not_hold_up_a_small_tenant() -> None:
    bench = Bench(max_running=2, cache="none", num_pages=129)
    load = Load(bench)
    for _ in range(200):
        load.add("flood", 1.0, 8, 4)
    for _ in range(4):
        bench.step()
    small = load.add("small", 1.0, 8, 4)
    steps = 0
    while small not in bench.finish:
        bench.step()
        steps += 1
    assert steps <= 12  # at most one batch of the flood is ahead of it
    bench.drain()


def test_within_a_tenant_the_policy_orders() -> None:
    bench = Bench(max_running=1, policy="lof", cache="none")
    load = Load(bench)
    bench.add([1] * 4, tenant="x", max_tokens=2)
    bench.step()
    short, long = load.add("a", 1.0, 4, 1), load.add("a", 1.0, 4, 6)
    load.add("b", 1.0, 4, 2)
    order = [r.id for r in bench.scheduler.policy.order(bench.scheduler.queue, bench.memory.match)]
    assert order.index(long) < order.index(short)
    bench.drain()


def test_one_tenant_is_first_come_first_served_and_counts_nothing() -> None:
    bench = Bench(max_running=2)
    for _ in range(6):
        bench.add([1, 2, 3], tenant="only")
    bench.drain()
    assert bench.scheduler.shares.counters() == {"only": 0.0}
    assert [bench.requests[i].order for i in range(6)] == list(range(6))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.1, 8.0), st.integers(1, 50)), max_size=120))
def test_forgetting_idle_tenants_changes_no_order(work: list[tuple[int, float, int]]) -> None:
    """The same work with and without forgetting: the same counters for whoever is asked about."""
    small, large = TenantShares(kept=3), TenantShares(kept=10_000)
    for number, weight, tokens in work:
        name = f"t{number}"
        for shares in (small, large):
            shares.arrived("rival", 1.0)
            shares.waits("rival")
            shares.arrived(name, weight)
            shares.waits(name)
        assert small.counter(name) == large.counter(name)
        for shares in (small, large):
            shares.charge_prompt(name, tokens)
            shares.charge_prompt("rival", 7)
            for tenant in (name, "rival"):
                shares.leaves_queue(tenant)
                shares.ended(tenant)
        assert small.counter(name) == large.counter(name)
    assert len(small) <= len(large)
