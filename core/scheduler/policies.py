"""Core's own schedule policies, registered like anyone's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import Int32
from core.interfaces.schedule import Match, R, SchedulePolicy

MAX_MATCHED = 128  # beyond this many waiting, matching each against the cache costs more than it brings


class Fcfs(SchedulePolicy):
    """First come, first served."""

    reorders: ClassVar[bool] = False

    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        return waiting


class LongestPrefixMatch(SchedulePolicy):
    """Most cached tokens first: what is in the cache is used before it is evicted."""

    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        if len(waiting) > MAX_MATCHED:
            return waiting
        matched = {id(request): match(request.key).num_tokens for request in waiting}
        return sorted(waiting, key=lambda request: -matched[id(request)])


class DfsWeight(SchedulePolicy):
    """Depth first through the cached prefixes, the branch with most waiting requests first: requests that share
    a prefix run together."""

    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        if len(waiting) > MAX_MATCHED:
            return waiting
        # Page numbers identify a cached prefix in any namespace: no page is in two of them.
        ranked: list[R] = []
        self._visit([(request, match(request.key).pages[0]) for request in waiting], 0, ranked)
        return ranked

    def _visit(self, items: list[tuple[R, Int32]], depth: int, ranked: list[R]) -> None:
        """Rank `items`, whose cached prefixes agree in their first `depth` pages; longer ones first."""
        branches: dict[int, list[tuple[R, Int32]]] = {}
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

    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        return sorted(waiting, key=lambda request: request.num_prompt - request.max_len)


class RandomOrder(SchedulePolicy):
    """A random order, drawn anew each time; the same seed gives the same orders."""

    def __init__(self, ctx: PluginContext, seed: int = 0) -> None:
        super().__init__(ctx, seed)
        self._random = random.Random(seed)

    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        return self._random.sample(waiting, len(waiting))
