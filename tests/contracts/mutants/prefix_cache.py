"""Broken prefix caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import (
    CacheGeometry,
    CacheKey,
    CacheLock,
    CacheStats,
    InsertResult,
    Int32,
    MatchParams,
    MatchResult,
)
from core.interfaces.spec import StateKind
from core.memory.radix import CacheEvent, Node, RadixCache
from core.testing.contracts.prefix_cache import PrefixCacheContract

_ANY = "test_any_history_of_calls"


class _Mutant(PrefixCacheContract):
    caught_by: ClassVar[tuple[str, ...]] = (_ANY,)
    settings: ClassVar[Mapping[str, Any]] = {"events": True}


class TestLeaksBetweenNamespaces(_Mutant):
    caught_by = (_ANY, "test_namespaces_are_worlds_of_their_own")

    class implementation(RadixCache):  # noqa: N801
        def match(self, params: MatchParams) -> MatchResult:
            return super().match(replace(params, key=CacheKey(b"", params.key.tokens)))

        def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
            return super().insert(CacheKey(b"", key.tokens), pages, priority)


class TestTakesTheBeginningOfANamespace(_Mutant):
    class implementation(RadixCache):  # noqa: N801
        def match(self, params: MatchParams) -> MatchResult:
            return super().match(replace(params, key=CacheKey(params.key.namespace[:1], params.key.tokens)))

        def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
            return super().insert(CacheKey(key.namespace[:1], key.tokens), pages, priority)


class TestLocksNothing(_Mutant):
    caught_by = (_ANY, "test_a_lock_released_twice_takes_nothing_from_another", "test_a_lock_on_what_was_inserted")

    class implementation(RadixCache):  # noqa: N801
        def lock(self, node: Any) -> CacheLock:
            return super().lock(None)


class _CountsDown:
    """Releases as often as it is asked to."""

    def __init__(self, cache: RadixCache, node: Any) -> None:
        self.cache, self.node = cache, node

    def release(self) -> None:
        if self.node is not None and self.node.locks:
            self.cache._unlock(self.node)


class TestReleasesTwice(_Mutant):
    caught_by = (_ANY, "test_a_lock_released_twice_takes_nothing_from_another")

    class implementation(RadixCache):  # noqa: N801
        def lock(self, node: Any) -> CacheLock:
            return _CountsDown(self, super().lock(node)._node)  # type: ignore[attr-defined]


class TestMatchesTheLastToken(_Mutant):
    """Ignores max_tokens."""

    caught_by = (_ANY, "test_a_match_is_whole_pages_and_no_more_than_asked")

    class implementation(RadixCache):  # noqa: N801
        def match(self, params: MatchParams) -> MatchResult:
            return super().match(replace(params, max_tokens=len(params.key.tokens)))


class TestMatchesPartsOfPages(_Mutant):
    caught_by = (_ANY, "test_a_match_is_whole_pages_and_no_more_than_asked")

    class implementation(RadixCache):  # noqa: N801
        def match(self, params: MatchParams) -> MatchResult:
            found = super().match(params)
            return replace(found, num_tokens=min(found.num_tokens + 1, params.max_tokens) if found.num_tokens else 0)


class TestTakesOverAllPages(_Mutant):
    caught_by = (_ANY, "test_what_is_there_already_is_not_taken_over", "test_a_lock_on_what_was_inserted")

    class implementation(RadixCache):  # noqa: N801
        def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
            return replace(super().insert(key, pages, priority), first_new_page=0)


class TestSaysItHoldsTheRest(_Mutant):
    """Counts tokens past the last whole page."""

    class implementation(RadixCache):  # noqa: N801
        def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
            return replace(super().insert(key, pages, priority), matched_tokens=len(key.tokens))


class TestEvictsTooFew(_Mutant):
    class implementation(RadixCache):  # noqa: N801
        def evict(self, num_pages: int) -> Int32:
            return super().evict(num_pages - 1)


class TestEvictsTheFirstPagesOfALeaf(_Mutant):
    """... and keeps those behind them."""

    class implementation(RadixCache):  # noqa: N801
        def _shorten(self, node: Node, num: int) -> Int32:
            pages = node.pages.copy()
            super()._shorten(node, num)
            node.pages = pages[:, num:]
            return pages[:, :num]


class TestGivesBackTwice(_Mutant):
    class implementation(RadixCache):  # noqa: N801
        def evict(self, num_pages: int) -> Int32:
            pages = super().evict(num_pages)
            return np.concatenate((pages, pages[:, :1]), axis=1) if pages.shape[1] > 1 else pages


class TestGroupsInOneRow(_Mutant):
    class implementation(RadixCache):  # noqa: N801
        def evict(self, num_pages: int) -> Int32:
            return super().evict(num_pages).reshape(1, -1)


class TestForgetsPagesAtReset(_Mutant):
    caught_by = (_ANY, "test_what_is_there_already_is_not_taken_over")

    class implementation(RadixCache):  # noqa: N801
        def reset(self) -> Int32:
            return super().reset()[:, 1:]


class TestCountsLockedAsEvictable(_Mutant):
    caught_by = (_ANY, "test_a_lock_released_twice_takes_nothing_from_another")

    class implementation(RadixCache):  # noqa: N801
        def stats(self) -> CacheStats:
            return replace(super().stats(), evictable_pages=self._cached_pages)


class TestCountsByWalking(_Mutant):
    caught_by = ("test_stats_cost_the_same_however_much_is_cached",)

    class implementation(RadixCache):  # noqa: N801
        def stats(self) -> CacheStats:
            nodes: list[Node] = [*self._roots.values()]
            for node in nodes:
                nodes.extend(node.children.values())
            return super().stats()


class TestKeepsTheCallersArrays(_Mutant):
    caught_by = (_ANY, "test_callers_may_reuse_their_arrays")

    class implementation(RadixCache):  # noqa: N801
        def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
            result = super().insert(key, pages, priority)
            if result.node is not None and result.node.node.start == result.first_new_page:
                result.node.node.pages = pages[:, result.first_new_page :]
            return result


class TestGivesItsOwnArraysAway(_Mutant):
    caught_by = ("test_callers_may_reuse_their_arrays",)

    class implementation(RadixCache):  # noqa: N801
        def _pages_to(self, node: Node, end: int) -> Int32:
            return node.pages[:, :end] if not node.start else super()._pages_to(node, end)


class TestALookIsAUse(_Mutant):
    caught_by = ("test_the_least_recently_used_goes_first", "test_the_least_frequently_used_goes_first")

    class implementation(RadixCache):  # noqa: N801
        def match(self, params: MatchParams) -> MatchResult:
            return super().match(replace(params, touch=True))


class TestAUseIsNone(_Mutant):
    caught_by = ("test_the_least_recently_used_goes_first", "test_the_least_frequently_used_goes_first")

    class implementation(RadixCache):  # noqa: N801
        def match(self, params: MatchParams) -> MatchResult:
            return super().match(replace(params, touch=False))


class TestAlwaysLru(_Mutant):
    caught_by = ("test_the_oldest_goes_first", "test_the_lowest_priority_goes_first")

    class implementation(RadixCache):  # noqa: N801
        def __init__(self, geometry: CacheGeometry, ctx: PluginContext) -> None:
            super().__init__(replace(geometry, eviction="lru"), ctx)


class TestTellsNothingOfEvictions(_Mutant):
    class implementation(RadixCache):  # noqa: N801
        def events(self) -> list[Any]:
            return [event for event in super().events() if event.kind != "removed"]


class TestTellsTwice(_Mutant):
    caught_by = (_ANY, "test_events_tell_what_is_held")

    class implementation(RadixCache):  # noqa: N801
        def events(self) -> list[CacheEvent]:
            return list(self._events or [])


class TestKeepsNoKind(_Mutant):
    caught_by = ("test_state_kinds",)

    class implementation(RadixCache):  # noqa: N801
        state_kinds: ClassVar[frozenset[StateKind]] = frozenset()
