"""SchedulePolicyContract: an order of waiting requests that loses nobody, keeps ties, repeats, and stays cheap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from core.interfaces.prefix_cache import CacheKey, MatchResult
from core.interfaces.schedule import SchedulePolicy, StepLoad
from core.testing.contracts.base import Contract
from core.testing.contracts.schedule_world import Waiting, World, drain

_PAGE = 4
_LONG_QUEUE = 10_000
_MOST_MATCHES = 2  # a request


class SchedulePolicyContract(Contract):
    """A policy is asked between two steps for the order in which waiting requests are admitted.

    draws: whether the order is drawn, so that even equal requests may come in any order.
    """

    kind = "schedule_policies"
    draws: ClassVar[bool] = False

    def policy(self, seed: int = 0) -> SchedulePolicy:
        """A new one, made as core makes it."""
        made: SchedulePolicy = self.plugin()(self.context(), seed)
        return made

    def queue(self, shapes: Sequence[tuple[int, int, int]], *, interval_s: float = 1.0) -> World:
        """Waiting requests in first-come order. shapes: (prompt tokens, tokens to generate, cached pages) of each.
        interval_s: between two arrivals."""
        return World([Waiting(i, *shape, i * interval_s) for i, shape in enumerate(shapes)], _PAGE)

    # Orders

    def test_everybody_comes_back_once(self) -> None:
        shapes = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(0, 8)), min_size=2, max_size=40)

        def check(given: list[tuple[int, int, int]]) -> None:
            world = self.queue(given)
            self.check_order(world, self.policy().rank(world.waiting, world.match))

        self.for_all(shapes, check, examples=60)

    def check_order(self, world: World, ranked: Any) -> None:
        """`ranked` is `world.waiting` in some order, and the very same objects."""
        assert isinstance(ranked, Sequence), f"rank() returned {type(ranked).__name__}, not a sequence"
        given, got = Counter(map(id, world.waiting)), Counter(map(id, ranked))
        lost = [request.id for request in world.waiting if not got[id(request)]]
        assert not lost, f"requests {lost} are lost: core would switch this policy off"
        extra = [getattr(request, "id", request) for request in ranked if got[id(request)] > given[id(request)]]
        assert not extra, f"{extra} come twice or are none of those given: core would switch this policy off"

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_few(self, count: int) -> None:
        """Core asks with two or more only; another policy that wraps this one may not."""
        world = self.queue([(5, 5, 1), (3, 9, 0)][:count])
        self.check_order(world, self.policy().rank(world.waiting, world.match))

    def test_what_it_is_given_is_not_changed(self) -> None:
        world = self.queue([(1 + i * 7 % 11, 1 + i * 5 % 13, i % 4) for i in range(20)])
        before, attributes = list(world.waiting), [request.values() for request in world.waiting]
        try:
            self.policy().rank(world.waiting, world.match)
        except (AttributeError, TypeError) as error:
            raise AssertionError(
                f"rank() asks for what a waiting request does not offer, or writes: {error}"
            ) from error
        assert all(now is then for now, then in zip(world.waiting, before, strict=True)), "rank() moved its argument"
        assert [request.values() for request in world.waiting] == attributes, "rank() changed requests"

    def test_an_immutable_queue_is_enough(self) -> None:
        """Core hands over a tuple."""
        world = self.queue([(9 - i, 1 + i, i % 3) for i in range(8)])
        self.check_order(world, self.policy().rank(tuple(world.waiting), world.match))

    def test_equal_requests_keep_their_order(self) -> None:
        self.require(not self.draws, "an order that is not drawn")
        for count in (2, 17, 200):
            world = self.queue([(8, 8, 2)] * count, interval_s=0.0)
            ranked = self.policy().rank(world.waiting, world.match)
            assert [request.id for request in ranked] == list(range(count)), "who came first is served first"

    def test_the_same_seed_gives_the_same_orders(self) -> None:
        shapes = [(1 + i * 7 % 11, 1 + i * 5 % 13, i % 4) for i in range(30)]

        def orders(seed: int) -> list[list[int]]:
            policy, world = self.policy(seed), self.queue(shapes)
            return [[request.id for request in policy.rank(world.waiting, world.match)] for _ in range(3)]

        assert orders(3) == orders(3)
        if self.draws:
            assert any(orders(3) != orders(seed) for seed in range(4, 8)), "the seed does not matter"
        else:
            assert orders(3) == orders(4), "the order depends on the seed; set `draws` if it is drawn"

    def test_an_order_does_not_depend_on_earlier_ones(self) -> None:
        """Requests come and go between two calls; whoever left must not matter."""
        self.require(not self.draws, "an order that is not drawn")
        first = self.queue([(1 + i * 3 % 7, 1 + i, i % 3) for i in range(12)])
        used, fresh = self.policy(), self.policy()
        used.rank(first.waiting, first.match)
        second = self.queue([(1 + i * 5 % 9, 2 + i % 4, (i + 1) % 3) for i in range(9)])
        got = [request.id for request in used.rank(second.waiting, second.match)]
        assert got == [request.id for request in fresh.rank(second.waiting, second.match)]

    # Cost

    def test_a_long_queue_is_not_matched_again_and_again(self) -> None:
        """Each look into the prefix cache walks a tree; the engine's next step waits for all of them."""
        world = self.queue([(4 + i % 9, 1 + i % 5, i % 3) for i in range(_LONG_QUEUE)])
        world.most_matches = _MOST_MATCHES * _LONG_QUEUE
        self.check_order(world, self.policy().rank(world.waiting, world.match))

    def test_work_grows_about_as_the_queue(self) -> None:
        """Counted in looks at requests, so that a slow machine does not matter."""

        def looks(count: int) -> int:
            world = self.queue([(4 + i % 9, 1 + i % 5, 0) for i in range(count)])
            self.policy().rank(world.waiting, world.match)
            return sum(request.looks for request in world.waiting) + 8 * count

        few, many = looks(400), looks(3200)
        assert many <= 16 * few, f"8 times the queue took {many / few:.0f} times the looks at requests"

    # Budgets

    def test_step_tokens_stays_in_its_range(self) -> None:
        self.require(self.plugin().plans_steps, "plans_steps")
        loads = st.builds(
            StepLoad,
            num_decodes=st.integers(0, 300),
            num_waiting=st.integers(0, 2000),
            chunk_tokens=st.integers(1, 8192),
            last_tokens=st.integers(0, 8192),
            last_step_s=st.floats(0, 10),
        )
        policy = self.policy()

        def check(load: StepLoad) -> None:
            tokens = policy.step_tokens(load)
            assert isinstance(tokens, int), f"step_tokens() returned {tokens!r}, not an int"
            assert 1 <= tokens <= load.chunk_tokens, f"{tokens} is not in 1 .. {load.chunk_tokens}"

        self.for_all(loads, check, examples=100)

    # In a scheduler

    @pytest.mark.parametrize("cache", ["none", "radix"])
    def test_in_a_scheduler_everybody_is_served(self, cache: str) -> None:
        """Few slots, few pages, small budgets: with preemption and, by cache, shared prompts."""
        strategy = st.lists(
            st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=20), st.integers(1, 9), st.integers(-1, 1)),
            min_size=1,
            max_size=14,
        )

        def check(requests: list[tuple[list[int], int, int]]) -> None:
            drain(self.policy(), requests, cache=cache)

        self.for_all(strategy, check, examples=25)

    def test_in_a_scheduler_its_order_is_followed(self) -> None:
        """One slot: the order of admission is that of `rank`, asked again after each."""
        self.require(self.plugin().reorders and not self.draws, "reorders, and not by lot")
        prompts = [([1 + i] * (3 + i * 5 % 7), 1 + i * 3 % 5, 0) for i in range(8)]
        policy, asked = self.policy(), list[tuple[int, int]]()
        rank: Callable[..., Any] = policy.rank

        def noted(waiting: Any, match: Callable[[CacheKey], MatchResult]) -> Any:
            ranked = rank(waiting, match)
            asked.append((len(asked), ranked[0].id))
            return ranked

        policy.rank = noted  # type: ignore[method-assign]
        admitted = drain(policy, prompts, cache="none", max_running=1)
        firsts = list(dict.fromkeys(first for _, first in asked))
        assert asked, "reorders is true, and rank() was never called"
        assert [request for request in admitted if request in firsts] == firsts

    def test_a_poor_request_is_served_in_an_endless_stream(self) -> None:
        """Core's fairness around it: no order can hold a request back for ever."""
        rng = np.random.default_rng(0)
        stream = [(rng.integers(1, 4, 8).tolist(), 4, 0) for _ in range(150)]
        poor = 3
        admitted = drain(self.policy(), stream, cache="radix", max_running=1, max_bypasses=5, keep_waiting=6)
        assert admitted.index(poor) <= poor + 6 * 12, "passed more often than core allows"
