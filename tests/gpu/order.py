"""A pytest plugin: in which order the workers of a part take its tests.

`-p tests.gpu.order`, with words of the names of those that take longest in CORE_GPU_TESTS_FIRST, longest first. Each
worker begins with a long one; who has nothing left takes of the others' last ones (`--dist worksteal`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

VARIABLE = "CORE_GPU_TESTS_FIRST"
SEPARATOR = "|"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    words = [word for word in os.environ.get(VARIABLE, "").split(SEPARATOR) if word]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    places = dealt([item.nodeid for item in items], words, workers)
    items[:] = [items[place] for place in places]


def dealt(names: Sequence[str], words: Sequence[str], workers: int) -> list[int]:
    """Places of the names in their new order: as many runs as workers, one for each, the remainder in the last ones,
    as xdist cuts them. Names that contain the first of the words are dealt out first, one to each worker, and so on;
    those with none of them keep their order behind."""

    def rank(place: int) -> int:
        return next((number for number, word in enumerate(words) if word in names[place]), len(words))

    order = sorted(range(len(names)), key=rank)
    hands = [order[first::workers] for first in range(workers)]
    return [place for hand in reversed(hands) for place in hand]
