"""NoCache: the prefix cache that keeps nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from core.interfaces.prefix_cache import (
    CacheKey,
    CacheLock,
    CacheStats,
    InsertResult,
    Int32,
    MatchParams,
    MatchResult,
    PrefixCache,
)
from core.interfaces.spec import StateKind


class _NoLock:
    """There is nothing to hold."""

    __slots__ = ()

    def release(self) -> None:
        return None


class NoCache(PrefixCache):
    """Every prompt is computed in full and every page goes back to the pool when its request ends."""

    state_kinds: ClassVar[frozenset[StateKind]] = frozenset(StateKind)

    def match(self, params: MatchParams) -> MatchResult:
        return MatchResult(0, self._no_pages())

    def lock(self, node: Any) -> CacheLock:
        return _NoLock()

    def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
        return InsertResult(0, 0)

    def evict(self, num_pages: int) -> Int32:
        return self._no_pages()

    def stats(self) -> CacheStats:
        return CacheStats(0, 0)

    def reset(self) -> Int32:
        return self._no_pages()

    def _no_pages(self) -> Int32:
        return np.empty((self.geometry.num_groups, 0), np.int32)
