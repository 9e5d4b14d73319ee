"""PrefixCacheContract: a prefix cache against a model that is a plain dictionary of prefixes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis.stateful import run_state_machine_as_test

from core.interfaces.errors import ConfigError
from core.interfaces.prefix_cache import CacheGeometry, CacheKey, InsertResult, MatchParams, Namespace, PrefixCache
from core.interfaces.spec import StateKind
from core.testing.contracts.base import Contract
from core.testing.contracts.prefix_cache_machine import Prefix, cache_machine, key_of

_POLICIES = ("lru", "lfu", "fifo", "priority")


class PrefixCacheContract(Contract):
    """Core owns the pages and records each one's state; it believes what a cache says of them. So what is tested is
    bookkeeping: no page is given away twice, none is lost, none that a lock holds comes back.

    page_sizes, group_counts: geometries to test with.
    """

    kind = "prefix_cache"
    page_sizes: ClassVar[tuple[int, ...]] = (1, 2, 3, 16)
    group_counts: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def apply_event(self, event: Any, held: set[Prefix], page_size: int) -> None:
        """Bring `held`, the prefixes of whole pages that a router knows of, up to date with one event of this cache.
        Here: events with `kind` ("stored", "removed" or "cleared"), `namespace`, `start` and `tokens` (the whole
        prefix; its pages from token `start` on are meant). Override it for other events."""
        if event.kind == "cleared":
            held.clear()
            return
        tokens = tuple(int(token) for token in event.tokens)
        changed = {
            (event.namespace, tokens[:end]) for end in range(event.start + page_size, len(tokens) + 1, page_size)
        }
        if event.kind == "stored":
            assert not changed & held, f"stored again: {changed & held}"
            held |= changed
        else:
            assert changed <= held, f"removed, though never stored: {changed - held}"
            held -= changed

    # Building

    def supported(self, policy: str) -> bool:
        try:
            self.cache(policy=policy)
        except ConfigError as error:
            hint = error.hint
        else:
            return True
        assert hint, f"refuses policy {policy} without a way out"
        return False

    def cache(self, page_size: int = 1, num_groups: int = 1, policy: str = "lru") -> PrefixCache:
        cache: PrefixCache = self.plugin()(CacheGeometry(page_size, num_groups, policy), self.context())
        return cache

    def require_keeping(self) -> None:
        """Skip the test for a cache that keeps nothing."""
        result = insert(self.cache(), [1, 2, 3], [1, 2, 3])
        self.require(result.matched_tokens, "keeping prefixes")

    def test_state_kinds(self) -> None:
        """Core refuses a model with state that the cache cannot store, by the manifest and by the class."""
        kinds = self.plugin().state_kinds
        assert isinstance(kinds, frozenset)
        assert kinds, "state_kinds is empty: core would never choose this cache"
        assert all(isinstance(kind, StateKind) for kind in kinds)
        stated = self.record().capabilities.get("state_kinds")
        assert stated is None or set(stated) == {str(kind) for kind in kinds}, f"the manifest says {stated}"

    def test_some_eviction_policy_is_served(self) -> None:
        assert any(self.supported(policy) for policy in _POLICIES)

    # Everything at once

    def test_any_history_of_calls(self) -> None:
        """Inserts, matches, locks, evictions and resets in any order, over several namespaces and geometries."""
        policies = [policy for policy in _POLICIES if self.supported(policy)]
        machine = cache_machine(self, policies)
        settings = self.example_settings(60)
        run_state_machine_as_test(machine, settings=type(settings)(settings, stateful_step_count=25))

    # One thing at a time

    @pytest.mark.parametrize("num_groups", [1, 3])
    def test_a_match_is_whole_pages_and_no_more_than_asked(self, num_groups: int) -> None:
        cache = self.cache(4, num_groups)
        tokens = list(range(14))
        pages = np.arange(1, 3 * num_groups + 1, dtype=np.int32).reshape(num_groups, 3)
        held = cache.insert(key_of(b"", tokens), pages.copy()).matched_tokens
        self.require(held, "keeping prefixes")
        for limit in range(16):
            found = cache.match(MatchParams(key_of(b"", tokens), limit))
            assert found.num_tokens == min(limit, held) // 4 * 4, f"max_tokens {limit} matched {found.num_tokens}"
            assert found.pages.shape == (num_groups, found.num_tokens // 4)
            assert (found.pages == pages[:, : found.num_tokens // 4]).all()

    def test_namespaces_are_worlds_of_their_own(self) -> None:
        self.require_keeping()
        cache = self.cache()
        spaces = [
            Namespace(), Namespace(salt="a"), Namespace(adapter="a"), Namespace(model="a"), Namespace(media=("a",)),
            Namespace(salt="ab"), Namespace(salt="a", media=("b",)),
        ]  # fmt: skip
        for number, space in enumerate(spaces):
            found = cache.match(MatchParams(key_of(space.encode(), [7, 8]), 2))
            assert found.num_tokens == 0, f"{space} sees what another namespace stored"
            insert(cache, [7, 8], [2 * number + 1, 2 * number + 2], space.encode())
        for number, space in enumerate(spaces):
            found = cache.match(MatchParams(key_of(space.encode(), [7, 8]), 2))
            assert found.pages.tolist() == [[2 * number + 1, 2 * number + 2]]

    def test_a_lock_released_twice_takes_nothing_from_another(self) -> None:
        self.require_keeping()
        cache = self.cache()
        insert(cache, [1, 2], [5, 6])
        first, second = (cache.lock(cache.match(MatchParams(key_of(b"", [1, 2]), 2)).node) for _ in range(2))
        first.release()
        first.release()
        assert cache.evict(2).size == 0, "a page went that a lock still holds"
        assert cache.stats().evictable_pages == 0
        second.release()
        assert sorted(cache.evict(2)[0].tolist()) == [5, 6]

    def test_a_match_of_nothing_can_be_locked(self) -> None:
        """Core locks every match, whatever it found."""
        cache = self.cache()
        lock = cache.lock(cache.match(MatchParams(key_of(b"", [1, 2]), 2)).node)
        insert(cache, [1, 2], [5, 6])
        held = cache.stats().cached_pages
        assert cache.stats().evictable_pages == held
        lock.release()
        assert cache.evict(2).shape == (1, held)

    def test_a_lock_on_what_was_inserted(self) -> None:
        """Core swaps a request's lock for one on what it has just inserted."""
        self.require_keeping()
        cache = self.cache()
        insert(cache, [1], [5])
        old = cache.lock(cache.match(MatchParams(key_of(b"", [1, 2, 3]), 3)).node)
        result = insert(cache, [1, 2, 3], [5, 6, 7])
        assert result.first_new_page == 1
        new = cache.lock(result.node)
        old.release()
        assert cache.evict(3).size == 0
        new.release()
        assert sorted(cache.evict(3)[0].tolist()) == [5, 6, 7]

    def test_what_is_there_already_is_not_taken_over(self) -> None:
        """Two requests with one prompt: the second one's pages stay core's."""
        self.require_keeping()
        cache = self.cache()
        insert(cache, [1, 2, 3], [4, 5, 6])
        result = insert(cache, [1, 2, 3, 9], [14, 15, 16, 17])
        assert (result.matched_tokens, result.first_new_page) == (4, 3)
        assert cache.match(MatchParams(key_of(b"", [1, 2, 3, 9]), 4)).pages.tolist() == [[4, 5, 6, 17]]
        assert insert(cache, [1, 2], [24, 25]).first_new_page == 2
        assert sorted(cache.reset()[0].tolist()) == [4, 5, 6, 17]

    def test_callers_may_reuse_their_arrays(self) -> None:
        self.require_keeping()
        cache, tokens, pages = self.cache(), np.array([1, 2, 3], np.int32), np.array([[4, 5, 6]], np.int32)
        cache.insert(CacheKey(b"", tokens), pages)
        tokens[:], pages[:] = 9, 99
        found = cache.match(MatchParams(key_of(b"", [1, 2, 3]), 3))
        assert found.pages.tolist() == [[4, 5, 6]], "the cache keeps the caller's arrays"
        found.pages[:] = 77
        assert cache.match(MatchParams(key_of(b"", [1, 2, 3]), 3)).pages.tolist() == [[4, 5, 6]], (
            "a caller that writes to a match's pages changes the cache"
        )

    def test_stats_cost_the_same_however_much_is_cached(self) -> None:
        self.require_keeping()
        few, many = self.cache(), self.cache()
        for number in range(200):
            insert(many, [number, number + 1], [2 * number + 1, 2 * number + 2])
        insert(few, [1, 2], [1, 2])
        assert _work(many.stats) == _work(few.stats), "stats() looks at what is cached"

    def test_events_tell_what_is_held(self) -> None:
        """Where events are kept (settings may have to turn them on). That they add up to what is cached in any history
        is part of `test_any_history_of_calls`."""
        self.require_keeping()
        cache = self.cache()
        insert(cache, [1, 2], [4, 5])
        events = cache.events()
        assert isinstance(events, list)
        self.require(events, "events")
        assert cache.events() == [], "events() returns what it has returned before"
        held: set[Prefix] = set()
        for event in events:
            self.apply_event(event, held, 1)
        assert held == {(b"", (1,)), (b"", (1, 2))}

    # Who goes first

    def leaves_first(self, policy: str, uses: Callable[[PrefixCache], None]) -> list[int]:
        """First tokens of three prompts of one page, in the order in which they are evicted."""
        self.require_keeping()
        self.require(self.supported(policy), f"eviction policy {policy}")
        cache = self.cache(policy=policy)
        for token, priority in ((1, 1), (2, 0), (3, 2)):
            cache.insert(key_of(b"", [token]), np.array([[token]], np.int32), priority)
        uses(cache)
        return [int(cache.evict(1)[0, 0]) for _ in range(3)]

    def test_the_least_recently_used_goes_first(self) -> None:
        def uses(cache: PrefixCache) -> None:
            use(cache, 1)
            use(cache, 2, touch=False)  # a look that is no use

        assert self.leaves_first("lru", uses) == [2, 3, 1]

    def test_the_least_frequently_used_goes_first(self) -> None:
        def uses(cache: PrefixCache) -> None:
            for token in (1, 1, 1, 3, 2, 1, 2):
                use(cache, token)
            for _ in range(9):
                use(cache, 3, touch=False)

        assert self.leaves_first("lfu", uses) == [3, 2, 1]

    def test_the_oldest_goes_first(self) -> None:
        def uses(cache: PrefixCache) -> None:
            for token in (1, 1, 2):
                use(cache, token)

        assert self.leaves_first("fifo", uses) == [1, 2, 3]

    def test_the_lowest_priority_goes_first(self) -> None:
        def uses(cache: PrefixCache) -> None:
            use(cache, 2)

        assert self.leaves_first("priority", uses) == [2, 1, 3]


def insert(cache: PrefixCache, tokens: Sequence[int], pages: Sequence[int], namespace: bytes = b"") -> InsertResult:
    """For caches with one group and pages of one token."""
    return cache.insert(key_of(namespace, tokens), np.array([pages], np.int32))


def use(cache: PrefixCache, token: int, touch: bool = True) -> None:
    assert cache.match(MatchParams(key_of(b"", [token]), 1, touch)).num_tokens == 1


def _work(call: Callable[[], object]) -> int:
    """Lines of Python and calls into C that `call` takes."""
    count = 0

    def line(*_: Any) -> Any:
        nonlocal count
        count += 1
        return line

    old_trace, old_profile = sys.gettrace(), sys.getprofile()
    sys.settrace(line)
    sys.setprofile(line)
    try:
        call()
    finally:
        sys.settrace(old_trace)
        sys.setprofile(old_profile)
    return count
