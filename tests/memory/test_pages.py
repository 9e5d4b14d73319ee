import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.memory.pages import PagePool, PageState, PageStateError


def array(*pages: int) -> np.ndarray:
    return np.array([pages], np.int32)


def test_first_pages_are_contiguous_and_page_0_is_never_given() -> None:
    pool = PagePool(9, num_groups=2)
    assert pool.capacity == 8
    assert pool.allocate(3).tolist() == [[1, 2, 3]] * 2
    assert pool.allocate(5).tolist() == [[4, 5, 6, 7, 8]] * 2
    with pytest.raises(PageStateError, match="1 pages asked for, 0 free"):
        pool.allocate(1)
    assert pool.count(PageState.NULL) == 1
    pool.check_all()


def test_runs_come_back_as_runs() -> None:
    pool = PagePool(20)
    pool.allocate(4)
    second = pool.allocate(4)
    pool.allocate(2)
    pool.release(0, second[0], None)
    assert pool.allocate(4).tolist() == [[5, 6, 7, 8]]


def test_an_idle_pool_forgets_fragmentation() -> None:
    pool = PagePool(9)
    pages = pool.allocate(8)[0]
    for page in np.random.default_rng(0).permutation(pages):
        pool.release(0, np.array([page], np.int32), None)
    assert pool.allocate(8).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_double_free_and_foreign_transitions_raise() -> None:
    pool = PagePool(5)
    pages = pool.allocate(2)
    pool.release(0, pages[0], None)
    with pytest.raises(PageStateError, match="FREE"):
        pool.release(0, pages[0], None)
    with pytest.raises(PageStateError, match="NULL"):
        pool.release(0, array(0)[0], None)
    with pytest.raises(PageStateError):
        pool.cache(pages)
    taken = pool.allocate(1)
    with pytest.raises(PageStateError):
        pool.evict(taken)
    with pytest.raises(PageStateError):
        pool.release(0, np.repeat(taken[0], 2), None)
    pool.check_all()


def test_quarantine_holds_pages_until_their_fence() -> None:
    pool = PagePool(5)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.release(0, first[0], fence=3)
    pool.release(0, second[0], fence=4)
    assert pool.num_free == 0
    assert pool.count(PageState.QUARANTINED) == 4
    pool.check_all()
    pool.fence_passed(2)
    assert pool.num_free == 0
    pool.fence_passed(3)
    assert pool.num_free == 2
    assert set(pool.allocate(2)[0].tolist()) == set(first[0].tolist())
    pool.fence_passed(9)
    assert pool.num_free == 2
    pool.check_all()


def test_cached_pages_come_back_by_eviction_only() -> None:
    pool = PagePool(5)
    pages = pool.allocate(3)
    pool.cache(pages)
    assert pool.count(PageState.CACHED) == 3
    with pytest.raises(PageStateError):
        pool.release(0, pages[0], None)
    pool.evict(pages[:, 1:])
    assert pool.num_free == 3
    pool.check_all()


def test_check_finds_a_corrupted_pool() -> None:
    pool = PagePool(5)
    pool.check()
    pool._counts[0][PageState.FREE] -= 1
    with pytest.raises(PageStateError, match="counters"):
        pool.check()
    pool = PagePool(5)
    pool.state[0, 2] = PageState.LEASED
    with pytest.raises(PageStateError):
        pool.check_all()


@pytest.mark.parametrize(("pages", "groups"), [(1, 1), (0, 1), (4, 0)])
def test_impossible_sizes(pages: int, groups: int) -> None:
    with pytest.raises(ValueError, match="at least 2 pages"):
        PagePool(pages, groups)


@given(st.lists(st.tuples(st.sampled_from(["take", "free", "hold", "cache", "evict", "pass"]), st.integers(0, 6))))
def test_every_page_is_in_one_place(ops: list[tuple[str, int]]) -> None:
    pool = PagePool(12, num_groups=2)
    leased: list[np.ndarray] = []
    cached: list[np.ndarray] = []
    step = 0
    for op, number in ops:
        if op == "take" and number <= pool.num_free:
            leased.append(pool.allocate(number))
        elif op in ("free", "hold") and leased:
            pages = leased.pop(number % len(leased))
            for group in range(2):
                pool.release(group, pages[group], None if op == "free" else step + number)
        elif op == "cache" and leased:
            cached.append(leased.pop(number % len(leased)))
            pool.cache(cached[-1])
        elif op == "evict" and cached:
            pool.evict(cached.pop(number % len(cached)))
        elif op == "pass":
            step += 1
            pool.fence_passed(step)
        pool.check_all()
        for group in range(2):
            out = np.concatenate([[0], *(pages[group] for pages in leased + cached)])
            assert len(set(out.tolist())) == len(out)
    assert sum(p.shape[1] for p in leased) == pool.count(PageState.LEASED)
    assert sum(p.shape[1] for p in cached) == pool.count(PageState.CACHED)
