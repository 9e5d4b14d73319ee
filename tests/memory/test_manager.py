import numpy as np
import pytest

from core.interfaces.context import PluginContext
from core.interfaces.errors import EngineError
from core.interfaces.prefix_cache import CacheGeometry, CacheKey, InsertResult, MatchParams, PrefixCache
from core.memory.manager import MemoryManager
from core.memory.no_cache import NoCache
from core.memory.pages import PageState, PageStateError
from core.memory.radix import RadixCache


def make(kind: type[PrefixCache] = RadixCache, num_pages: int = 11, num_groups: int = 1) -> MemoryManager:
    cache = kind(CacheGeometry(2, num_groups), PluginContext())
    return MemoryManager(cache, num_pages=num_pages, page_size=2, num_slots=4, max_pages=8, num_groups=num_groups)


def key(*tokens: int) -> CacheKey:
    return CacheKey(b"", np.array(tokens, np.int32))


def slots(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_begin_gives_contiguous_pages_and_fills_the_row() -> None:
    memory = make(num_groups=2)
    lease = memory.begin(key(1, 2, 3, 4, 5), 1)
    assert lease is not None
    assert lease.cached_tokens == 0
    assert memory.page_table[:, 1, :3].tolist() == [[1, 2, 3]] * 2
    update = memory.row(1)
    assert update.slots.tolist() == [1, 1, 1]
    assert update.index.tolist() == [0, 1, 2]
    assert update.pages.tolist() == [[1, 2, 3]] * 2
    memory.check_all()


def test_published_prefix_is_found_and_the_last_token_left_to_compute() -> None:
    memory = make()
    first = memory.begin(key(1, 2, 3, 4), 0)
    memory.publish(first, key(1, 2, 3, 4).tokens)
    assert memory.pool.count(PageState.CACHED) == 2
    second = memory.begin(key(1, 2, 3, 4), 1)
    assert second.cached_tokens == 2
    assert memory.page_table[0, 1, :2].tolist() == [1, 3]
    assert memory.match(key(1, 2, 3, 4, 5)).num_tokens == 4
    memory.check_all()
    first.release(0)
    second.release(0)
    stats = memory.stats()
    assert (stats.free, stats.quarantined, stats.evictable) == (7, 1, 0)
    memory.fence_passed(0)
    assert memory.idle
    assert memory.stats().evictable == 2
    memory.check_all()


def test_a_published_prefix_cannot_be_evicted_under_its_lease() -> None:
    memory = make(num_pages=4)
    lease = memory.begin(key(1, 2, 3, 4), 0)
    memory.publish(lease, key(1, 2, 3, 4).tokens)
    assert memory.available == 1
    assert memory.begin(key(7, 8, 9), 1) is None
    assert memory.stats().evictable == 0
    memory.check_all()


def test_release_is_idempotent_and_waits_for_its_fence() -> None:
    memory = make(num_pages=5)
    lease = memory.begin(key(1, 2, 3, 4), 0)
    memory.publish(lease, key(1, 2).tokens)
    lease.release(3)
    lease.release(3)
    assert lease.released
    memory.publish(lease, key(1, 2, 3, 4).tokens)
    stats = memory.stats()
    assert (stats.free, stats.cached, stats.quarantined, stats.evictable) == (2, 1, 1, 0)
    assert memory.pending_pages == 2
    assert memory.begin(key(5, 6, 7, 8, 9), 1) is None
    memory.fence_passed(3)
    assert memory.pending_pages == 0
    assert memory.available == 4
    assert memory.begin(key(5, 6, 7, 8, 9), 1) is not None
    memory.check_all()


def test_a_slot_has_one_lease() -> None:
    memory = make()
    lease = memory.begin(key(1, 2), 0)
    with pytest.raises(AssertionError, match="slot 0 is leased"):
        memory.begin(key(3, 4), 0)
    lease.release(0)
    assert memory.begin(key(3, 4), 0) is not None
    with pytest.raises(AssertionError, match="not held"):
        memory.take_back(lease, 0)


def test_two_that_computed_the_same_keep_their_own_pages() -> None:
    memory = make()
    tokens = key(1, 2, 3, 4, 5, 6)
    one, two = memory.begin(tokens, 0), memory.begin(tokens, 1)
    memory.publish(one, tokens.tokens)
    memory.publish(two, tokens.tokens)
    assert memory.pool.count(PageState.CACHED) == 3
    assert memory.pool.count(PageState.LEASED) == 3
    memory.check_all()
    memory.fence_passed(0)
    one.release(0)
    assert memory.stats().evictable == 0, "two's lock covers the prefix"
    two.release(0)
    stats = memory.stats()
    assert (stats.free, stats.cached, stats.evictable) == (7, 3, 3)


def test_begin_evicts_when_short_and_keeps_a_reserve() -> None:
    memory = make(num_pages=5)
    lease = memory.begin(key(1, 2, 3, 4, 5, 6), 0)
    memory.fence_passed(0)
    memory.release(lease, key(1, 2, 3, 4, 5, 6).tokens, 0)
    assert (memory.stats().free, memory.available) == (1, 4)
    assert memory.begin(key(7, 8, 9, 10, 11), 1, reserve=2) is None
    assert memory.stats().cached == 3, "refusing evicts nothing"
    assert memory.begin(key(7, 8, 9, 10, 11), 1, reserve=1) is not None
    assert memory.stats().cached == 1
    memory.check_all()


def test_extend_gives_each_row_what_it_lacks() -> None:
    memory = make(num_groups=2)
    memory.begin(key(1, 2), 0)
    memory.begin(key(1, 2, 3), 1)
    memory.begin(key(3), 3)
    rows = slots(0, 1, 3)
    short = memory.shortage(rows, slots(3, 4, 6))
    assert short.tolist() == [1, 0, 2]
    update = memory.extend(rows, short)
    assert update.slots.tolist() == [0, 3, 3]
    assert update.index.tolist() == [1, 1, 2]
    assert update.pages.shape == (2, 3)
    assert (memory.page_table[:, update.slots, update.index] == update.pages).all()
    assert memory.row_pages.tolist() == [2, 2, 0, 3]
    assert memory.extend(rows, slots(0, 0, 0)) is None
    memory.check_all()


def test_no_cache_gives_every_page_back() -> None:
    memory = make(NoCache)
    lease = memory.begin(key(1, 2, 3, 4), 0)
    memory.publish(lease, key(1, 2, 3, 4).tokens)
    assert memory.begin(key(1, 2, 3, 4), 1).cached_tokens == 0
    memory.fence_passed(0)
    lease.release(0)
    assert memory.stats().leased == 2
    assert memory.stats().free == 8
    assert memory.cache.stats().cached_pages == 0
    memory.check_all()


def test_reset_needs_quiet() -> None:
    memory = make()
    lease = memory.begin(key(1, 2, 3, 4), 0)
    memory.publish(lease, key(1, 2, 3, 4).tokens)
    with pytest.raises(EngineError, match="in use"):
        memory.reset_cache()
    lease.release(0)
    with pytest.raises(EngineError, match="in use"):
        memory.reset_cache()
    memory.fence_passed(0)
    memory.reset_cache()
    assert memory.stats().free == 10
    assert memory.match(key(1, 2, 3, 4)).num_tokens == 0


class _Liar(RadixCache):
    """Claims pages that it was not given."""

    def insert(self, key: CacheKey, pages: np.ndarray, priority: int = 0) -> InsertResult:
        result = super().insert(key, pages, priority)
        return InsertResult(result.matched_tokens, 0, result.node)


def test_what_a_cache_claims_is_checked() -> None:
    memory = make(_Liar)
    first = memory.begin(key(1, 2, 3), 0)
    memory.publish(first, key(1, 2).tokens)
    second = memory.begin(key(1, 2, 3, 4), 1)
    with pytest.raises(PageStateError, match="CACHED"):
        memory.publish(second, key(1, 2, 3, 4).tokens)


def test_check_compares_the_caches_count_with_the_pools() -> None:
    memory = make()
    memory.check()
    memory.cache.insert(key(1, 2), np.array([[1]], np.int32))
    with pytest.raises(AssertionError, match="the cache says it has 1 pages"):
        memory.check()


def test_both_caches_answer_the_interface() -> None:
    for kind in (RadixCache, NoCache):
        cache = kind(CacheGeometry(2, 3), PluginContext())
        found = cache.match(MatchParams(key(1, 2, 3), 3))
        assert found.pages.shape == (3, 0)
        assert cache.evict(4).shape == (3, 0)
        assert cache.reset().shape == (3, 0)
        lock = cache.lock(found.node)
        lock.release()
        lock.release()
        assert cache.events() == []
