"""PagePool: the state of every page, the free list, and the quarantine behind step fences.

A page is in exactly one state. Every transition names the state it leaves, and a page found in another state
is a bug that stops the engine at once: giving one page to two owners, or freeing it twice, cannot go unnoticed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


class PageState(IntEnum):
    """FREE: in the free list. LEASED: owned by one lease. CACHED: owned by the prefix cache, shared by locks.
    TRANSFER: being moved by a transport, owned by its lease. QUARANTINED: given back, but a step in flight may
    still read or write it. NULL: page 0, never given out."""

    FREE = 0
    LEASED = 1
    CACHED = 2
    TRANSFER = 3
    QUARANTINED = 4
    NULL = 5


# As plain numbers: members of an enumeration are many times slower to look up and to count with.
_FREE, _LEASED, _CACHED, _QUARANTINED, _NULL = (
    int(state) for state in (PageState.FREE, PageState.LEASED, PageState.CACHED, PageState.QUARANTINED, PageState.NULL)
)


class PageStateError(AssertionError):
    """A page was found in a state that its owner cannot have left it in: a bug, never a user's mistake."""


class PagePool:
    """`num_pages` pages in each of `num_groups` cache groups, page 0 included.

    Page arrays are [num_groups, n] int32; column i of every group covers the same tokens. `capacity` pages a
    group can be given out (all but page 0).
    """

    def __init__(self, num_pages: int, num_groups: int = 1) -> None:
        if num_pages < 2 or num_groups < 1:
            raise ValueError(f"a pool needs at least 2 pages and 1 group, not {num_pages} and {num_groups}")
        self.num_pages = num_pages
        self.num_groups = num_groups
        self.capacity = num_pages - 1
        self.state = np.zeros((num_groups, num_pages), np.uint8)
        self.state[:, 0] = PageState.NULL
        self._counts = [[0] * len(PageState) for _ in range(num_groups)]
        for counts in self._counts:
            counts[_FREE] = self.capacity
            counts[_NULL] = 1
        # A stack whose top is at the right end; descending, so that the first pages out are 1, 2, 3 ...
        self._ordered = np.arange(self.capacity, 0, -1, dtype=np.int32)
        self._free = np.tile(self._ordered, (num_groups, 1))
        self._quarantine: dict[int, list[tuple[int, Int32]]] = {}

    @property
    def num_free(self) -> int:
        """Pages that every group can give now."""
        if self.num_groups == 1:
            return self._counts[0][_FREE]
        return min(counts[_FREE] for counts in self._counts)

    def count(self, state: PageState, group: int = 0) -> int:
        """How many pages of a group are in `state`. O(1)."""
        return self._counts[group][state]

    def allocate(self, num: int) -> Int32:
        """Take `num` pages of every group, FREE -> LEASED. Returns [G, num], ascending, contiguous where the free
        list is. Raises PageStateError when there are fewer: the caller makes room first."""
        if num > self.num_free:
            raise PageStateError(f"{num} pages asked for, {self.num_free} free")
        pages = np.empty((self.num_groups, num), np.int32)
        for group, taken in enumerate(pages):
            top = self._counts[group][_FREE]
            taken[:] = self._free[group, top - num : top]
            taken.sort()
            self._move(group, taken, _FREE, _LEASED)
        return pages

    def cache(self, pages: Int32) -> None:
        """LEASED -> CACHED for pages [G, n]: the prefix cache has taken them over."""
        for group in range(self.num_groups):
            self._move(group, pages[group], _LEASED, _CACHED)

    def evict(self, pages: Int32) -> None:
        """CACHED -> FREE for pages [G, n] that the prefix cache gave up. No step in flight may touch them: locks
        outlive the fence of their last reader."""
        for group in range(self.num_groups):
            self._move(group, pages[group], _CACHED, _FREE)
            self._push(group, pages[group])

    def release(self, group: int, pages: Int32, fence: int | None) -> None:
        """LEASED pages [n] of one group come back: at once (fence None), or after step `fence`."""
        if not len(pages):
            return
        if fence is None:
            self._move(group, pages, _LEASED, _FREE)
            self._push(group, pages)
        else:
            self._move(group, pages, _LEASED, _QUARANTINED)
            self._quarantine.setdefault(fence, []).append((group, pages))

    def fence_passed(self, step: int) -> None:
        """Steps up to `step` have completed: what was held back for them is free."""
        if not self._quarantine:
            return
        for fence in [fence for fence in self._quarantine if fence <= step]:
            for group, pages in self._quarantine.pop(fence):
                self._move(group, pages, _QUARANTINED, _FREE)
                self._push(group, pages)

    def check(self) -> None:
        """Conservation from the counters, O(num_groups). Raises PageStateError."""
        for group, counts in enumerate(self._counts):
            if sum(counts) != self.num_pages or min(counts) < 0 or counts[PageState.NULL] != 1:
                raise PageStateError(f"group {group} has {self.num_pages} pages, its counters say {counts}")

    def check_all(self) -> None:
        """Everything, O(num_pages): counters, free list and quarantine against the states. For tests."""
        self.check()
        for group, counts in enumerate(self._counts):
            actual = np.bincount(self.state[group], minlength=len(PageState)).tolist()
            free = np.sort(self._free[group, : counts[PageState.FREE]])
            held = [pages for parts in self._quarantine.values() for g, pages in parts if g == group]
            quarantined = np.sort(np.concatenate([np.empty(0, np.int32), *held]))
            if (
                actual != counts
                or not np.array_equal(free, np.flatnonzero(self.state[group] == PageState.FREE))
                or not np.array_equal(quarantined, np.flatnonzero(self.state[group] == PageState.QUARANTINED))
            ):
                raise PageStateError(f"group {group}: counters {counts}, states {actual}, free list {free.tolist()}")

    def _move(self, group: int, pages: Int32, source: int, target: int) -> None:
        """The only writer of `state` and of the counters."""
        row, num = self.state[group], len(pages)
        if row[pages].tobytes().count(source) != num or (num > 1 and len(set(pages.tolist())) != num):
            found = {int(page): PageState(row[page]).name for page in pages}
            wanted = f"{PageState(source).name} -> {PageState(target).name}"
            raise PageStateError(f"group {group}: {wanted} asked for pages {found}")
        row[pages] = target
        counts = self._counts[group]
        counts[source] -= num
        counts[target] += num

    def _push(self, group: int, pages: Int32) -> None:
        """Onto the free list, after the counter has grown; reversed, so that runs come out as runs again."""
        top = self._counts[group][_FREE]
        self._free[group, top - len(pages) : top] = pages[::-1]
        if top == self.capacity:  # an idle pool forgets its fragmentation
            self._free[group] = self._ordered
