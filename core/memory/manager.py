"""MemoryManager: page table, leases and prefix cache in one place. The only mover of pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.interfaces.errors import EngineError
from core.interfaces.prefix_cache import CacheKey, CacheLock, MatchParams, MatchResult, PrefixCache
from core.memory.lease import Lease
from core.memory.pages import PagePool, PageState

Int32 = npt.NDArray[np.int32]
_LEASED = int(PageState.LEASED)


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """`page_table[g][slots, index] = pages[g]`. slots [K], index [K], pages [G, K], all int32."""

    slots: Int32
    index: Int32
    pages: Int32


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Pages of one group. free + leased + cached + transfer + quarantined == total."""

    total: int
    free: int
    leased: int
    cached: int
    transfer: int
    quarantined: int
    evictable: int


class MemoryManager:
    """Pages of `num_slots` requests with at most `max_pages` pages each.

    page_table [G, num_slots, max_pages] int32: row of a slot, valid up to `row_pages[slot]`. Every group is
    token-paged with the same page size, so a row has the same number of columns in each group. A page behind a
    sliding window is kept as long as the row lives, because the prefix cache wants whole rows; PagePool.release
    takes a group, so that freeing behind the window fits later.
    """

    def __init__(
        self,
        cache: PrefixCache,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        max_pages: int,
        num_groups: int = 1,
    ) -> None:
        self.cache = cache
        self.page_size = page_size
        self.pool = PagePool(num_pages, num_groups)
        self.page_table = np.zeros((num_groups, num_slots, max_pages), np.int32)
        self.row_pages = np.zeros(num_slots, np.int32)
        self._row_tokens = np.zeros(num_slots, np.int32)  # that fit into them
        self._columns = np.arange(max_pages, dtype=np.int32)
        self._leases: list[Lease | None] = [None] * num_slots
        self._passed = -1
        self._held: dict[int, list[tuple[CacheLock, int]]] = {}
        self.pending_pages = 0
        self.version = 0  # grows when more prefixes are cached
        self.keeps_prefixes = True  # until the cache declines one

    @property
    def capacity(self) -> int:
        """Pages a group can hold in all."""
        return self.pool.capacity

    @property
    def available(self) -> int:
        """Pages that can be had now, evicting whatever is not locked. `pending_pages` is an upper bound of what
        comes on top once the steps in flight have completed."""
        return self.pool.num_free + self.cache.stats().evictable_pages

    @property
    def idle(self) -> bool:
        """Whether nothing is leased, locked or held behind a fence."""
        return not self._held and all(lease is None for lease in self._leases)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def match(self, key: CacheKey) -> MatchResult:
        """What a request would find, without counting as a use. The last token is always left to compute."""
        return self.cache.match(MatchParams(key, max_tokens=len(key.tokens) - 1, touch=False))

    def begin(
        self, key: CacheKey, slot: int, *, priority: int = 0, reserve: int = 0, reuse: bool = True
    ) -> Lease | None:
        """A lease on pages for all of `key.tokens`, its cached prefix first, into row `slot`. reuse: whether a cached
        prefix is used at all.

        None, with nothing changed, if fewer than `reserve` pages would remain available.
        """
        if self._leases[slot] is not None:
            raise AssertionError(f"slot {slot} is leased already")
        found = self.cache.match(MatchParams(key, max_tokens=len(key.tokens) - 1 if reuse else 0))
        num_cached = found.num_tokens // self.page_size
        total = self.num_pages_for(len(key.tokens))
        lock = self.cache.lock(found.node)
        if total - num_cached + reserve > self.available:
            lock.release()
            return None
        row = self.page_table[:, slot]
        if num_cached:
            row[:, :num_cached] = found.pages
        row[:, num_cached:total] = self._allocate(total - num_cached)
        self.row_pages[slot] = total
        self._row_tokens[slot] = total * self.page_size
        lease = Lease(self, slot, key.namespace, priority, found.num_tokens, lock)
        self._leases[slot] = lease
        return lease

    def lacking(self, key: CacheKey, *, reserve: int = 0, reuse: bool = True) -> int:
        """Pages that `begin` would lack now; 0 or less: it would succeed. Leaves no trace."""
        found = self.cache.match(MatchParams(key, max_tokens=len(key.tokens) - 1 if reuse else 0, touch=False))
        lock = self.cache.lock(found.node)
        missing = self.num_pages_for(len(key.tokens)) - found.num_tokens // self.page_size
        lacking = missing + reserve - self.available
        lock.release()
        return lacking

    def row(self, slot: int) -> TableUpdate:
        """The whole row of a slot, as a table update."""
        num = int(self.row_pages[slot])
        slots = np.empty(num, np.int32)
        slots.fill(slot)
        return TableUpdate(slots, self._columns[:num], self.page_table[:, slot, :num].copy())

    def fits(self, slots: Int32, lens: Int32) -> bool:
        """Whether rows `slots` [n] hold `lens` [n] tokens: none is short."""
        return not np.count_nonzero(lens > self._row_tokens[slots])

    def shortage(self, slots: Int32, lens: Int32) -> Int32:
        """Pages [n] that rows `slots` [n] lack to hold `lens` [n] tokens."""
        return np.maximum(-(-lens // self.page_size) - self.row_pages[slots], 0).astype(np.int32)

    def extend(self, slots: Int32, shortage: Int32) -> TableUpdate | None:
        """Append `shortage` [n] pages to rows `slots` [n]; the caller has seen to it that they are available.
        None if nothing is short."""
        rows = np.flatnonzero(shortage)
        if not len(rows):
            return None
        num, short = shortage[rows], slots[rows]
        row_slots = np.repeat(short, num)
        ends = np.cumsum(num)
        offset = np.arange(ends[-1]) - np.repeat(ends - num, num)
        index = (self.row_pages[row_slots] + offset).astype(np.int32)
        pages = self._allocate(int(ends[-1]))
        self.page_table[:, row_slots, index] = pages
        self.row_pages[short] += num
        self._row_tokens[short] += num * self.page_size
        return TableUpdate(row_slots, index, pages)

    def publish(self, lease: Lease, tokens: Int32) -> None:
        """Offer the cache the whole pages of `tokens` [n] int32, the row's first n tokens, all of them written by
        verified-complete steps. The lease's lock moves on to cover them; duplicates stay the lease's own."""
        num = len(tokens) // self.page_size
        if num <= lease.num_published or lease.released:
            return
        pages = self.page_table[:, lease.slot, :num].copy()
        key = CacheKey(lease.namespace, tokens[: num * self.page_size])
        result = self.cache.insert(key, pages, lease.priority)
        self.keeps_prefixes = bool(result.matched_tokens)
        if not self.keeps_prefixes:
            return
        self.pool.cache(pages[:, result.first_new_page : result.matched_tokens // self.page_size])
        lock = self.cache.lock(result.node)
        lease.lock.release()
        lease.lock = lock
        lease.num_published = num
        self.version += 1

    def release(self, lease: Lease, tokens: Int32, fence: int) -> None:
        """Publish `tokens` and release: a request's orderly end."""
        self.publish(lease, tokens)
        lease.release(fence)

    def take_back(self, lease: Lease, fence: int) -> None:
        """The other half of `Lease.release`, which is its only caller."""
        slot = lease.slot
        if self._leases[slot] is not lease:
            raise AssertionError(f"slot {slot} is not held by this lease")
        self._leases[slot] = None
        num = int(self.row_pages[slot])
        self.row_pages[slot] = self._row_tokens[slot] = 0
        held = fence > self._passed
        for group in range(self.pool.num_groups):
            row = self.page_table[group, slot, :num]
            own = row[self.pool.state[group, row] == _LEASED]
            self.pool.release(group, own, fence if held else None)
        if held:
            # The lock is held back like the pages: what a step in flight reads must not be evicted and reused.
            self._held.setdefault(fence, []).append((lease.lock, num))
            self.pending_pages += num
        else:
            lease.lock.release()

    def fence_passed(self, step: int) -> None:
        """Steps up to `step` have completed."""
        self._passed = max(self._passed, step)
        self.pool.fence_passed(step)
        if not self._held:
            return
        for fence in [fence for fence in self._held if fence <= step]:
            for lock, num in self._held.pop(fence):
                lock.release()
                self.pending_pages -= num

    def reset_cache(self) -> None:
        """Forget every cached prefix. Raises EngineError while anything is leased."""
        if not self.idle:
            raise EngineError(
                "the prefix cache is in use and cannot be flushed", hint="wait until no request runs, then try again"
            )
        self.pool.evict(self.cache.reset())

    def stats(self) -> MemoryStats:
        """O(1)."""
        count = self.pool.count
        return MemoryStats(
            total=self.capacity,
            free=count(PageState.FREE),
            leased=count(PageState.LEASED),
            cached=count(PageState.CACHED),
            transfer=count(PageState.TRANSFER),
            quarantined=count(PageState.QUARANTINED),
            evictable=self.cache.stats().evictable_pages,
        )

    def check(self) -> None:
        """Conservation, O(1): the pool's counters, and the cache's count against the pool's."""
        self.pool.check()
        cached = self.cache.stats().cached_pages
        if cached != self.pool.count(PageState.CACHED):
            raise AssertionError(
                f"the cache says it has {cached} pages, {self.pool.count(PageState.CACHED)} are cached"
            )

    def check_all(self) -> None:
        """Everything, in full, for tests: every LEASED page is in exactly one row, every CACHED one is the cache's."""
        self.check()
        self.pool.check_all()
        for group in range(self.pool.num_groups):
            rows = [self.page_table[group, s, : self.row_pages[s]] for s, le in enumerate(self._leases) if le]
            used = np.concatenate([np.empty(0, np.int32), *rows])
            state = self.pool.state[group, used]
            own = np.sort(used[state == PageState.LEASED])
            if not np.array_equal(own, np.flatnonzero(self.pool.state[group] == PageState.LEASED)):
                raise AssertionError(f"group {group}: leased pages and the rows that hold them differ")
            if not np.isin(state, (PageState.LEASED, PageState.CACHED)).all():
                raise AssertionError(f"group {group}: a row holds pages in states {set(state.tolist())}")

    def _allocate(self, num: int) -> Int32:
        short = num - self.pool.num_free
        if short > 0:
            self.pool.evict(self.cache.evict(short))
        return self.pool.allocate(num)
