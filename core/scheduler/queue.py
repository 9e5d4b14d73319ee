"""WaitingQueue: requests without a slot, in first-come order."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from core.scheduler.request import Request


def place(request: Request) -> tuple[int, int, int]:
    """Where a request stands in line: higher priority, then whoever was preempted, then who came first."""
    return (-request.priority, 0 if request.preemptions else 1, request.order)


class WaitingQueue:
    """Sorted by `place`; a preempted request therefore re-enters in front of those that never ran."""

    def __init__(self) -> None:
        self._line: list[Request] = []
        self.version = 0  # grows with every change

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def push(self, request: Request) -> None:
        insort(self._line, request, key=place)
        self.version += 1

    def remove(self, request: Request) -> None:
        self._line.remove(request)
        self.version += 1
