"""Lease: the one handle to a request's pages and to its lock on the prefix cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.interfaces.prefix_cache import CacheLock

if TYPE_CHECKING:
    from core.memory.manager import MemoryManager


class Lease:
    """What one request holds: row `slot` of the page table, and a lock on the cached part of it.

    Pages of the row in state CACHED are shared and covered by the lock; LEASED ones are this lease's own. Made
    by `MemoryManager.begin` only. `release` is the one way back; calling it again does nothing.

    cached_tokens: tokens that the prefix cache had when the lease began. namespace, priority: for publishing.
    """

    __slots__ = ("_memory", "cached_tokens", "lock", "namespace", "num_published", "priority", "slot")

    def __init__(
        self, memory: MemoryManager, slot: int, namespace: bytes, priority: int, cached_tokens: int, lock: CacheLock
    ) -> None:
        self._memory: MemoryManager | None = memory
        self.slot = slot
        self.namespace = namespace
        self.priority = priority
        self.cached_tokens = cached_tokens
        self.lock = lock
        self.num_published = cached_tokens // memory.page_size

    @property
    def released(self) -> bool:
        return self._memory is None

    def release(self, fence: int) -> None:
        """Give everything back. Pages and lock are held until step `fence`, the last one that touches them, has
        completed (at once, if it has)."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.take_back(self, fence)
