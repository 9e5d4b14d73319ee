"""Which waiting request is admitted next.

Every policy orders within one priority, after requests that were preempted. A policy other than fcfs lets later
requests pass; one that has been passed `max_bypasses` times goes first and nobody passes it again, so waiting
is bounded by arrivals of higher priority alone.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from core.interfaces.errors import ConfigError
from core.interfaces.prefix_cache import CacheKey, Int32, MatchResult
from core.scheduler.queue import WaitingQueue
from core.scheduler.request import Request

MAX_BYPASSES = 64
MAX_MATCHED = 128  # beyond this many waiting, matching each against the cache costs more than it brings

Match = Callable[[CacheKey], MatchResult]


class SchedulePolicy(ABC):
    """The order of admissions."""

    reorders = True  # whether order() may differ from first come, first served

    def __init__(self, max_bypasses: int = MAX_BYPASSES) -> None:
        self.max_bypasses = max_bypasses

    @abstractmethod
    def rank(self, waiting: list[Request], match: Match) -> Sequence[Request]:
        """`waiting` is in first-come order; returns all of it in the policy's. Ties keep first-come order."""

    def order(self, queue: WaitingQueue, match: Match) -> list[Request]:
        """Everybody in `queue`, next one first."""
        waiting = list(queue)
        if not self.reorders or len(waiting) < 2:
            return waiting
        first = {id(r) for r in waiting if r.preemptions or r.bypasses >= self.max_bypasses}
        ranked = [r for r in waiting if id(r) in first]
        ranked += self.rank([r for r in waiting if id(r) not in first], match)
        ranked.sort(key=lambda r: -r.priority)
        return ranked

    def admitted(self, queue: WaitingQueue, request: Request) -> None:
        """`request`, still in `queue`, is admitted: those ahead of it have been passed."""
        if self.reorders:
            for other in queue:
                if other is request:
                    break
                other.bypasses += 1


class Fcfs(SchedulePolicy):
    """First come, first served."""

    reorders = False

    def rank(self, waiting: list[Request], match: Match) -> Sequence[Request]:
        return waiting


class LongestPrefixMatch(SchedulePolicy):
    """Most cached tokens first: what is in the cache is used before it is evicted."""

    def rank(self, waiting: list[Request], match: Match) -> Sequence[Request]:
        if len(waiting) > MAX_MATCHED:
            return waiting
        matched = {id(r): match(r.key).num_tokens for r in waiting}
        return sorted(waiting, key=lambda r: -matched[id(r)])


class DfsWeight(SchedulePolicy):
    """Depth first through the cached prefixes, the branch with most waiting requests first: requests that share
    a prefix run together."""

    def rank(self, waiting: list[Request], match: Match) -> Sequence[Request]:
        if len(waiting) > MAX_MATCHED:
            return waiting
        # Page numbers identify a cached prefix in any namespace: no page is in two of them.
        ranked: list[Request] = []
        self._visit([(request, match(request.key).pages[0]) for request in waiting], 0, ranked)
        return ranked

    def _visit(self, items: list[tuple[Request, Int32]], depth: int, ranked: list[Request]) -> None:
        """Rank `items`, whose cached prefixes agree in their first `depth` pages; longer ones first."""
        branches: dict[int, list[tuple[Request, Int32]]] = {}
        for item in items:
            if len(item[1]) > depth:
                branches.setdefault(int(item[1][depth]), []).append(item)
        for branch in sorted(branches.values(), key=len, reverse=True):
            if len(branch) == 1:
                ranked.append(branch[0][0])
                continue
            shortest = min(len(pages) for _, pages in branch)
            stack = np.stack([pages[:shortest] for _, pages in branch])
            differ = (stack != stack[0]).any(axis=0)
            self._visit(branch, int(differ.argmax()) if differ.any() else shortest, ranked)
        ranked.extend(request for request, pages in items if len(pages) == depth)


class LongestOutputFirst(SchedulePolicy):
    """Most tokens to generate first: long ones start early and the batch drains evenly."""

    def rank(self, waiting: list[Request], match: Match) -> Sequence[Request]:
        return sorted(waiting, key=lambda r: r.num_prompt - r.max_len)


class RandomOrder(SchedulePolicy):
    """A random order, drawn anew each time, the same for the same seed."""

    def __init__(self, seed: int = 0, max_bypasses: int = MAX_BYPASSES) -> None:
        super().__init__(max_bypasses)
        self._random = random.Random(seed)

    def rank(self, waiting: list[Request], match: Match) -> Sequence[Request]:
        return self._random.sample(waiting, len(waiting))


def make_policy(name: str, seed: int = 0) -> SchedulePolicy:
    """Raises ConfigError for an unknown policy."""
    match name:
        case "fcfs":
            return Fcfs()
        case "lpm":
            return LongestPrefixMatch()
        case "dfs-weight":
            return DfsWeight()
        case "lof":
            return LongestOutputFirst()
        case "random":
            return RandomOrder(seed)
    raise ConfigError(
        f"schedule_policy is {name!r}",
        field="scheduler.schedule_policy",
        value=name,
        hint="use fcfs, lpm, dfs-weight, lof or random",
    )
