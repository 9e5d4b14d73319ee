"""WaitingQueue: requests without a slot, in lanes of one priority and one tenant, each in first-come order."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from heapq import merge

from core.scheduler.request import Request


def place(request: Request) -> tuple[int, int]:
    """Where a request stands in its lane: whoever was preempted, then who came first."""
    return 0 if request.preemptions else 1, request.order


class WaitingQueue:
    """A preempted request re-enters its lane in front of those that never ran. A change costs O(log lane) and a move
    of pointers."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[str, list[Request]]] = {}
        self._num = 0
        self.version = 0  # grows with every change

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Request]:
        """Higher priorities first, then as in a lane."""
        for priority in self.priorities():
            yield from self.line(priority)

    def priorities(self) -> list[int]:
        """Those that wait, highest first."""
        return sorted(self._lanes, reverse=True)

    def lanes(self, priority: int) -> dict[str, list[Request]]:
        """Tenant -> who waits with this priority, each list in order and not to be changed."""
        return self._lanes.get(priority, {})

    def line(self, priority: int) -> list[Request]:
        """Everybody of this priority, tenants mixed."""
        lanes = list(self._lanes[priority].values())
        return list(lanes[0]) if len(lanes) == 1 else list(merge(*lanes, key=place))

    @property
    def highest(self) -> int:
        """The highest priority that waits. The queue must not be empty."""
        return max(self._lanes)

    @property
    def single(self) -> list[Request] | None:
        """The only lane (a copy), or None if there are several or none."""
        if len(self._lanes) != 1:
            return None
        (lanes,) = self._lanes.values()
        if len(lanes) != 1:
            return None
        (lane,) = lanes.values()
        return list(lane)

    def push(self, request: Request) -> None:
        lane = self._lanes.setdefault(request.priority, {}).setdefault(request.tenant, [])
        insort(lane, request, key=place)
        self._num += 1
        self.version += 1

    def remove(self, request: Request) -> None:
        lanes = self._lanes[request.priority]
        lane = lanes[request.tenant]
        lane.remove(request)
        if not lane:
            del lanes[request.tenant]
            if not lanes:
                del self._lanes[request.priority]
        self._num -= 1
        self.version += 1

    def ahead(self, request: Request) -> Iterator[Request]:
        """Those before `request` in its lane."""
        for other in self._lanes[request.priority][request.tenant]:
            if other is request:
                return
            yield other
