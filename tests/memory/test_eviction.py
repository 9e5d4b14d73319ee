import numpy as np
import pytest

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.prefix_cache import CacheGeometry, CacheKey, MatchParams
from core.memory.radix import RadixCache


class Cache:
    """Page size 1, one page number a token inserted; prefixes are strings."""

    def __init__(self, policy: str) -> None:
        self.radix = RadixCache(CacheGeometry(page_size=1, eviction=policy), PluginContext())
        self.names: dict[int, str] = {}
        self.next = 1

    def key(self, text: str) -> CacheKey:
        return CacheKey(b"", np.frombuffer(text.encode(), np.uint8).astype(np.int32))

    def insert(self, text: str, priority: int = 0) -> None:
        pages = np.arange(self.next, self.next + len(text), dtype=np.int32)
        self.next += len(text)
        result = self.radix.insert(self.key(text), pages[None], priority)
        for i in range(result.first_new_page, len(text)):
            self.names[int(pages[i])] = text[: i + 1]

    def use(self, text: str, touch: bool = True) -> None:
        assert self.radix.match(MatchParams(self.key(text), len(text), touch)).num_tokens == len(text)

    def lock(self, text: str):
        return self.radix.lock(self.radix.match(MatchParams(self.key(text), len(text))).node)

    def evict(self, num: int) -> list[str]:
        return [self.names[page] for page in self.radix.evict(num)[0].tolist()]


def test_lru_evicts_least_recently_used() -> None:
    cache = Cache("lru")
    for text in "abc":
        cache.insert(text)
    cache.use("a")
    assert cache.evict(1) == ["b"]
    cache.insert("d")
    assert cache.evict(3) == ["c", "a", "d"]
    assert cache.evict(1) == []


def test_a_look_without_touch_changes_nothing() -> None:
    for policy in ("lru", "lfu", "fifo", "priority"):
        cache = Cache(policy)
        for text in ("ax", "b", "c"):
            cache.insert(text)
        for _ in range(5):
            cache.use("ax", touch=False)
            cache.use("a", touch=False)
        assert cache.evict(2) == ["a", "ax"]
        assert cache.radix.stats().nodes == 2


def test_a_parent_outlives_its_children() -> None:
    for policy in ("lru", "lfu", "fifo", "priority"):
        cache = Cache(policy)
        cache.insert("pa")
        cache.insert("pb")
        cache.insert("z")
        order = cache.evict(4)
        assert order.index("p") > max(order.index("pa"), order.index("pb")), policy


def test_an_exposed_parent_keeps_its_place() -> None:
    """fifo: the parent is older than everything; lru: it was used when its last child was."""
    cache = Cache("fifo")
    for text in ("pa", "pb", "z"):
        cache.insert(text)
    assert cache.evict(4) == ["pa", "pb", "p", "z"]
    cache = Cache("lru")
    for text in ("pa", "z", "pb"):
        cache.insert(text)
    assert cache.evict(4) == ["pa", "z", "pb", "p"]


def test_lfu_evicts_least_often_used() -> None:
    cache = Cache("lfu")
    for text in "abc":
        cache.insert(text)
    for text in "aaabcc":
        cache.use(text)
    assert cache.evict(3) == ["b", "c", "a"]


def test_lfu_counts_are_bounded() -> None:
    cache = Cache("lfu")
    cache.insert("a")
    cache.insert("b")
    for _ in range(3000):
        cache.use("a")
    assert len(cache.radix.order._ranks) <= 1024
    assert cache.evict(2) == ["b", "a"]


def test_fifo_ignores_use_and_locks_do_not_rejuvenate() -> None:
    cache = Cache("fifo")
    for text in "abc":
        cache.insert(text)
    cache.use("a")
    lock = cache.lock("a")
    assert cache.evict(1) == ["b"]
    lock.release()
    assert cache.evict(2) == ["a", "c"]


def test_priority_first_then_recency() -> None:
    cache = Cache("priority")
    cache.insert("a", priority=2)
    cache.insert("b", priority=1)
    cache.insert("c", priority=1)
    cache.use("b")
    assert cache.evict(3) == ["c", "b", "a"]


def test_a_child_lends_its_priority_to_its_parents() -> None:
    cache = Cache("priority")
    cache.insert("p", priority=0)
    cache.insert("q", priority=1)
    cache.insert("pa", priority=2)
    assert cache.evict(3) == ["q", "pa", "p"]


def test_lru_unlock_counts_as_use() -> None:
    cache = Cache("lru")
    cache.insert("a")
    lock = cache.lock("a")
    cache.insert("b")
    assert cache.evict(2) == ["b"]
    cache.insert("c")
    lock.release()
    assert cache.evict(2) == ["c", "a"]


def test_unknown_policy() -> None:
    with pytest.raises(ConfigError, match="mru") as error:
        Cache("mru")
    assert error.value.field == "cache.eviction_policy"


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "priority"])
def test_one_eviction_among_100k_leaves_looks_at_a_handful_of_nodes(policy: str) -> None:
    radix = RadixCache(CacheGeometry(page_size=1, eviction=policy), PluginContext())
    for i in range(100_000):
        key = CacheKey(b"", np.array([i % 300, i], np.int32))
        radix.insert(key, np.array([[1, i + 1]], np.int32))
    locks = [radix.lock(radix.match(MatchParams(CacheKey(b"", np.array([i, i], np.int32)), 2)).node) for i in range(20)]
    assert radix.stats().nodes >= 100_000
    radix.order.visited = 0
    for _ in range(100):
        assert radix.evict(1).shape == (1, 1)
    assert radix.order.visited <= 100 + 2 * len(locks)
