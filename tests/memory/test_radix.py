import numpy as np
import pytest

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import CacheGeometry, CacheKey, MatchParams
from core.memory.radix import RadixCache


def make(page_size: int = 2, num_groups: int = 1, **settings: object) -> RadixCache:
    return RadixCache(CacheGeometry(page_size, num_groups), PluginContext(settings=settings))


def key(tokens: str | list[int], namespace: bytes = b"") -> CacheKey:
    raw = [ord(c) for c in tokens] if isinstance(tokens, str) else tokens
    return CacheKey(namespace, np.array(raw, np.int32))


def pages(*row: int) -> np.ndarray:
    return np.array([row], np.int32)


def match(cache: RadixCache, tokens: str, max_tokens: int = 1000, namespace: bytes = b"") -> list[int]:
    found = cache.match(MatchParams(key(tokens, namespace), max_tokens))
    assert found.num_tokens == found.pages.shape[1] * cache.geometry.page_size
    return found.pages[0].tolist()


def test_matches_whole_pages_only() -> None:
    cache = make()
    result = cache.insert(key("abcde"), pages(1, 2))
    assert (result.matched_tokens, result.first_new_page) == (4, 0)
    assert match(cache, "abcdef") == [1, 2]
    assert match(cache, "abcd", max_tokens=3) == [1]
    assert match(cache, "abcx") == [1]
    assert match(cache, "axcd") == []
    assert match(cache, "a") == []
    assert match(cache, "abcd", max_tokens=-1) == []


def test_insert_reports_what_was_there() -> None:
    cache = make()
    cache.insert(key("abcd"), pages(1, 2))
    again = cache.insert(key("abcd"), pages(7, 8))
    assert (again.matched_tokens, again.first_new_page) == (4, 2)
    longer = cache.insert(key("abcdef"), pages(7, 8, 9))
    assert (longer.matched_tokens, longer.first_new_page) == (6, 2)
    assert match(cache, "abcdef") == [1, 2, 9]
    assert cache.stats().cached_pages == 3


def test_split_keeps_both_branches() -> None:
    cache = make()
    cache.insert(key("abcdef"), pages(1, 2, 3))
    assert cache.stats().nodes == 1
    result = cache.insert(key("abcdxy"), pages(4, 5, 6))
    assert result.first_new_page == 2
    assert cache.stats().nodes == 3
    assert match(cache, "abcdef") == [1, 2, 3]
    assert match(cache, "abcdxy") == [1, 2, 6]
    assert cache.stats().cached_pages == 4


def test_pages_that_share_a_first_token_are_different_children() -> None:
    cache = make()
    cache.insert(key("abab"), pages(1, 2))
    cache.insert(key("acac"), pages(3, 4))
    assert match(cache, "abab") == [1, 2]
    assert match(cache, "acac") == [3, 4]


def test_namespaces_share_nothing() -> None:
    cache = make()
    cache.insert(key("abcd", b"one"), pages(1, 2))
    assert match(cache, "abcd") == []
    assert match(cache, "abcd", namespace=b"two") == []
    cache.insert(key("abcd", b"two"), pages(3, 4))
    assert match(cache, "abcd", namespace=b"one") == [1, 2]
    assert match(cache, "abcd", namespace=b"two") == [3, 4]
    cache.evict(4)
    assert not cache._roots
    assert not cache._namespaces


def test_groups_have_their_own_numbers() -> None:
    cache = make(num_groups=2)
    cache.insert(key("abcd"), np.array([[1, 2], [8, 9]], np.int32))
    assert cache.match(MatchParams(key("abcx"), 4)).pages.tolist() == [[1], [8]]
    assert cache.evict(1).tolist() == [[2], [9]]
    assert cache.evict(0).shape == (2, 0)


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1\), expected \(1, 2\)"):
        make().insert(key("abcd"), pages(1))


def test_less_than_a_page_is_nothing() -> None:
    cache = make()
    assert cache.insert(key("a"), pages()).matched_tokens == 0
    cache.lock(cache.match(MatchParams(key("a"), 1)).node).release()
    assert cache.stats().nodes == 0


def test_a_lock_holds_its_prefix_and_no_more() -> None:
    cache = make()
    cache.insert(key("abcdef"), pages(1, 2, 3))
    lock = cache.lock(cache.match(MatchParams(key("abcdzz"), 100)).node)
    assert cache.stats().evictable_pages == 1
    assert cache.evict(10).tolist() == [[3]]
    assert match(cache, "abcdef") == [1, 2]
    lock.release()
    lock.release()
    assert cache.stats().evictable_pages == 2
    assert sorted(cache.evict(10)[0].tolist()) == [1, 2]


def test_locks_count_and_survive_splits() -> None:
    cache = make()
    cache.insert(key("abcdef"), pages(1, 2, 3))
    deep = cache.lock(cache.match(MatchParams(key("abcdef"), 100)).node)
    shallow = cache.lock(cache.match(MatchParams(key("abzz"), 100)).node)
    cache.insert(key("abcdxy"), pages(4, 5, 6))
    assert cache.stats().evictable_pages == 1
    deep.release()
    assert cache.stats().evictable_pages == 3
    assert cache.evict(10).shape == (1, 3)
    assert match(cache, "abcdef") == [1]
    shallow.release()
    assert cache.evict(10).tolist() == [[1]]
    assert cache.stats().nodes == 0


def test_an_untouched_match_can_be_locked_even_after_a_split() -> None:
    cache = make()
    cache.insert(key("abcdefgh"), pages(1, 2, 3, 4))
    one = cache.match(MatchParams(key("abzz"), 100, touch=False))
    three = cache.match(MatchParams(key("abcdefzz"), 100, touch=False))
    two = cache.match(MatchParams(key("abcdzz"), 100, touch=False))
    locks = [cache.lock(found.node) for found in (three, one, two)]
    assert cache.evict(10).tolist() == [[4]]
    for lock, left in zip(locks, (2, 2, 0), strict=True):
        lock.release()
        cache.evict(10)
        assert cache.stats().cached_pages == left


def test_eviction_shortens_a_leaf_from_its_end() -> None:
    cache = make()
    cache.insert(key("abcdefgh"), pages(1, 2, 3, 4))
    assert cache.evict(1).tolist() == [[4]]
    assert cache.evict(2).tolist() == [[2, 3]]
    assert match(cache, "abcdefgh") == [1]
    cache.insert(key("abcdef"), pages(5, 6, 7))
    assert match(cache, "abcdefgh") == [1, 6, 7]


def test_reset_returns_everything() -> None:
    cache = make(num_groups=2)
    cache.insert(key("abcd", b"x"), np.array([[1, 2], [5, 6]], np.int32))
    cache.insert(key("abef"), np.array([[3, 4], [7, 8]], np.int32))
    assert np.sort(cache.reset()).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert cache.stats().cached_pages == cache.stats().nodes == 0
    assert match(cache, "abcd") == []
    assert cache.reset().shape == (2, 0)


def test_what_was_inserted_does_not_change_with_the_callers_arrays() -> None:
    cache = make()
    tokens, numbers = np.array([1, 2, 3, 4], np.int32), pages(1, 2)
    cache.insert(CacheKey(b"", tokens), numbers)
    tokens[:] = 9
    numbers[:] = 9
    assert cache.match(MatchParams(key([1, 2, 3, 4]), 4)).pages.tolist() == [[1, 2]]


def test_events_are_off_by_default() -> None:
    cache = make()
    cache.insert(key("abcd"), pages(1, 2))
    assert cache.events() == []


def test_replayed_events_rebuild_the_contents() -> None:
    cache = make(page_size=2, events=True)
    rng = np.random.default_rng(0)
    replica: set[tuple[bytes, tuple[int, ...]]] = set()
    for i in range(300):
        tokens = rng.integers(0, 3, rng.integers(2, 12)).tolist()
        namespace = bytes([i % 2])
        num = len(tokens) // 2
        cache.insert(key(tokens, namespace), pages(*range(num)))
        if i % 3 == 0:
            cache.evict(int(rng.integers(1, 6)))
        for event in cache.events():
            prefixes = {
                (event.namespace, tuple(event.tokens[:end].tolist()))
                for end in range(event.start + 2, len(event.tokens) + 1, 2)
            }
            if event.kind == "stored":
                assert not prefixes & replica
                replica |= prefixes
            else:
                assert prefixes <= replica
                replica -= prefixes
        assert len(replica) == cache.stats().cached_pages
        for ns, prefix in replica:
            found = cache.match(MatchParams(key(list(prefix), ns), len(prefix), touch=False))
            assert found.num_tokens == len(prefix)
    cache.reset()
    assert [event.kind for event in cache.events()] == ["cleared"]
