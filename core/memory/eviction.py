"""Which cached node goes first: lru, lfu, fifo, priority. Every operation is O(1), whatever the tree's size.

Only a leaf can go, yet nothing here searches for leaves. The ranked orders (lru, lfu, priority) hold *all*
unlocked nodes and keep one invariant: a node stands behind each of its unlocked children. Uses, insertions and
unlocks report a path from the leaf upwards, so a parent is always moved after its child and never ranks lower.
So the first node in order is a leaf. `FifoOrder` drops a node that cannot go when it meets it at the head, and
gets it back at the head once it can: it is older than everything behind it.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from core.interfaces.errors import ConfigError

MAX_HITS = 1023  # lfu counts no further, which bounds the number of buckets


class Evictable:
    """What an order knows of a node. locks: holders at or below it. hits, priority: never less than a child's."""

    __slots__ = ("bucket", "children", "hits", "locks", "priority")

    def __init__(self, priority: int = 0) -> None:
        self.children: dict[bytes, Any] = {}
        self.locks = 0
        self.hits = 1
        self.priority = priority
        self.bucket: int | None = None


class EvictionOrder(ABC):
    """Told of everything that happens to a node; asked for the next one to go. `visited` counts nodes looked at."""

    def __init__(self) -> None:
        self.visited = 0

    @abstractmethod
    def created(self, node: Evictable) -> None:
        """A new, unlocked node."""

    @abstractmethod
    def used(self, node: Evictable) -> None:
        """Matched or inserted under; hits and priority are up to date. Child before parent."""

    @abstractmethod
    def locked(self, node: Evictable) -> None:
        """Its first lock was taken."""

    @abstractmethod
    def unlocked(self, node: Evictable) -> None:
        """Its last lock was released. Child before parent."""

    @abstractmethod
    def exposed(self, node: Evictable) -> None:
        """It lost its last child and is not locked."""

    @abstractmethod
    def removed(self, node: Evictable) -> None:
        """It left the tree."""

    @abstractmethod
    def victim(self) -> Evictable | None:
        """The unlocked leaf that goes next; it stays in order. None if every node is locked."""


class RankedOrder(EvictionOrder):
    """Lowest rank first; within a rank, least recently used first."""

    def __init__(self, rank: Callable[[Evictable], int]) -> None:
        super().__init__()
        self._rank = rank
        self._buckets: dict[int, OrderedDict[Evictable, None]] = {}
        self._ranks: list[int] = []  # heap of the buckets' ranks

    def created(self, node: Evictable) -> None:
        rank = node.bucket = self._rank(node)
        bucket = self._buckets.get(rank)
        if bucket is None:
            bucket = self._buckets[rank] = OrderedDict()
            heapq.heappush(self._ranks, rank)
        bucket[node] = None

    def used(self, node: Evictable) -> None:
        if node.bucket is not None:
            self.removed(node)
            self.created(node)

    def locked(self, node: Evictable) -> None:
        self.removed(node)

    def unlocked(self, node: Evictable) -> None:
        self.created(node)

    def exposed(self, node: Evictable) -> None:
        return None

    def removed(self, node: Evictable) -> None:
        if node.bucket is not None:
            del self._buckets[node.bucket][node]
            node.bucket = None

    def victim(self) -> Evictable | None:
        while self._ranks:
            bucket = self._buckets[self._ranks[0]]
            if bucket:
                self.visited += 1
                return next(iter(bucket))
            del self._buckets[heapq.heappop(self._ranks)]
        return None


class FifoOrder(EvictionOrder):
    """Oldest first, however often it was used."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: OrderedDict[Evictable, None] = OrderedDict()

    def created(self, node: Evictable) -> None:
        self._queue[node] = None

    def used(self, node: Evictable) -> None:
        return None

    def locked(self, node: Evictable) -> None:
        return None

    def unlocked(self, node: Evictable) -> None:
        if not node.children and node not in self._queue:
            self._to_front(node)

    def exposed(self, node: Evictable) -> None:
        self._to_front(node)

    def removed(self, node: Evictable) -> None:
        self._queue.pop(node, None)

    def victim(self) -> Evictable | None:
        while self._queue:
            node = next(iter(self._queue))
            self.visited += 1
            if not node.locks and not node.children:
                return node
            del self._queue[node]
        return None

    def _to_front(self, node: Evictable) -> None:
        self._queue[node] = None
        self._queue.move_to_end(node, last=False)


def make_order(policy: str) -> EvictionOrder:
    """Raises ConfigError for an unknown policy."""
    if policy == "lru":
        return RankedOrder(lambda node: 0)
    if policy == "lfu":
        return RankedOrder(lambda node: min(node.hits, MAX_HITS))
    if policy == "priority":
        return RankedOrder(lambda node: node.priority)
    if policy == "fifo":
        return FifoOrder()
    raise ConfigError(
        f"eviction_policy is {policy!r}",
        field="cache.eviction_policy",
        value=policy,
        hint="use lru, lfu, fifo or priority",
    )
