"""PrefixCache: which pages already hold the KV of a prefix.

The cache decides, core's memory owns the pages: a plugin gets page numbers and returns page numbers, core
records every page's state and checks what it is told. Only what a verified-complete step wrote is inserted.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from core.interfaces.context import PluginContext
from core.interfaces.spec import StateKind

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything but the tokens that KV depends on. Two requests share pages only if all of it is equal.

    salt: set by a trusted layer for tenant isolation. media: digests of images and the like, in order.
    """

    model: str = ""
    adapter: str = ""
    salt: str = ""
    media: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """32 bytes, the same in every process and tier (SHA-256 over length-prefixed fields)."""
        digest = hashlib.sha256()
        for value in (self.model, self.adapter, self.salt, *self.media):
            raw = value.encode()
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class CacheKey:
    """namespace: `Namespace.encode()`. tokens [n] int32: prompt and generated tokens."""

    namespace: bytes
    tokens: Int32


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """page_size: tokens a page. num_groups: cache groups; page arrays are [num_groups, n].
    eviction: name of the policy ("lru", "lfu", "fifo", "priority")."""

    page_size: int
    num_groups: int = 1
    eviction: str = "lru"


@dataclass(frozen=True, slots=True)
class MatchParams:
    """key: what is looked up. max_tokens: match at most this many (the last prompt token is always computed).
    touch: whether this counts as a use for eviction; a scheduler that only ranks passes False."""

    key: CacheKey
    max_tokens: int
    touch: bool = True


@dataclass(frozen=True, slots=True)
class MatchResult:
    """num_tokens: matched, a multiple of page_size. pages [num_groups, num_tokens / page_size].
    node: the cache's own handle, opaque to core; valid until the next insert or evict unless locked."""

    num_tokens: int
    pages: Int32
    node: Any = None


@dataclass(frozen=True, slots=True)
class InsertResult:
    """matched_tokens: how much of the key the cache now holds (whole pages).
    first_new_page: the pages from this index on were taken over by the cache; those before were there already
        (under other page numbers, unless they are the very pages that a lock of the caller covers)."""

    matched_tokens: int
    first_new_page: int
    node: Any = None


class CacheLock(Protocol):
    """Keeps a matched prefix from eviction. Releasing twice is harmless."""

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Pages per group. cached = evictable + locked."""

    cached_pages: int
    evictable_pages: int
    nodes: int = 0


class PrefixCache(ABC):
    """One prefix cache. Called from the scheduler's thread only."""

    state_kinds: ClassVar[frozenset[StateKind]]

    def __init__(self, geometry: CacheGeometry, ctx: PluginContext) -> None:
        self.geometry = geometry
        self.ctx = ctx

    @abstractmethod
    def match(self, params: MatchParams) -> MatchResult:
        """The longest cached prefix in whole pages."""

    @abstractmethod
    def lock(self, node: Any) -> CacheLock:
        """Lock the prefix that ends at `node` (of a match or an insert)."""

    @abstractmethod
    def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
        """Offer pages [num_groups, len(key.tokens) // page_size]; tokens past the last whole page are ignored."""

    @abstractmethod
    def evict(self, num_pages: int) -> Int32:
        """Give up at least `num_pages` unlocked pages per group if it has them; returns [num_groups, m]."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Counts, O(1)."""

    @abstractmethod
    def reset(self) -> Int32:
        """Forget everything; returns all pages [num_groups, m]. Only called while no lock is held."""

    def events(self) -> list[Any]:
        """Stored / removed events since the last call, for routers. Empty if not kept."""
        return []
