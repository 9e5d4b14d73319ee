"""KvStore (draft): KV pages in slower memory: host, disk, another machine.

Core decides what is stored and when; a store keeps bytes under keys. A key covers everything that the page's content
depends on, and is made by core alone: the namespace (model, adapter, tenant salt, media) and all tokens up to the
page's end. Two pages with one key are interchangeable; a store never needs to look inside.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import CacheKey


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """page_bytes: of one page over all layers and cache groups of one rank; every value has this size.
    layout: names dtype, layers, page size, ranks and backend; pages of another layout must never be returned, so a
        store that outlives the process keeps it with the data."""

    page_bytes: int
    layout: str


@dataclass(frozen=True, slots=True)
class StoreStats:
    """num_pages and num_bytes held now; hits and misses count keys since the store was made."""

    num_pages: int
    num_bytes: int
    hits: int = 0
    misses: int = 0


def page_keys(key: CacheKey, page_size: int, layout: str) -> list[bytes]:
    """Keys of the whole pages of a prefix, 32 bytes each: SHA-256 chained over layout, namespace and the tokens of each
    page (int32, little endian), so that a key stands for the entire prefix."""
    digest = hashlib.sha256(len(layout.encode()).to_bytes(8, "little") + layout.encode() + key.namespace).digest()
    keys = []
    for start in range(0, len(key.tokens) // page_size * page_size, page_size):
        page = key.tokens[start : start + page_size].astype("<i4").tobytes()
        digest = hashlib.sha256(digest + page).digest()
        keys.append(digest)
    return keys


class KvStore(ABC):
    """One store. Calls come from worker threads, several at a time, and may block; none may raise for a page that is
    not there or a medium that fails: that is a miss, logged."""

    def __init__(self, config: StoreConfig, ctx: PluginContext) -> None:
        self.config = config
        self.ctx = ctx

    @abstractmethod
    def contains(self, keys: Sequence[bytes]) -> int:
        """How many of the leading keys are stored: the index of the first that is not."""

    @abstractmethod
    def read(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> int:
        """Copy the pages into buffers of page_bytes each; returns how many leading pages are whole. Buffers after them
        hold anything. A page that was removed since `contains` ends the row."""

    @abstractmethod
    def write(self, keys: Sequence[bytes], pages: Sequence[memoryview]) -> int:
        """Store pages of page_bytes each; returns how many leading ones are stored now. The memory is the caller's
        again when this returns. Known keys need not be written again. A store that is full makes room or stops."""

    @abstractmethod
    def remove(self, keys: Sequence[bytes]) -> None:
        """Forget pages; unknown keys are ignored."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything of this layout."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Counts now."""

    def close(self) -> None:
        """No more calls come. What is to outlive the process is safe when this returns."""
        return None
