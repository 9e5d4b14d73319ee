"""Who gives way: running requests that are preempted for lack of memory, or for waiting ones of higher priority."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core.config.sections import SchedulerSettings
from core.scheduler.request import Request
from core.scheduler.table import RequestTable

if TYPE_CHECKING:
    from core.scheduler.scheduler import Scheduler

MAX_DISPLACED = 3  # times that a request gives way; then it stays, so that it ends at some time
MAX_LOOKED_AT = 64  # waiting requests in one step


def least_important(table: RequestTable) -> npt.NDArray[np.intp]:
    """Running slots, lowest priority first, the newest first among equals."""
    running = np.flatnonzero(table.state)
    return running[np.lexsort((-table.order[running], table.priority[running]))]


class PriorityPreemption:
    """A waiting request takes the place of a running one if its priority is higher by `threshold` or more and there
    is no slot or no memory for it otherwise. Nobody starves of it: who has given way `MAX_DISPLACED` times, or runs by
    the guaranteed share of its priority, stays."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.threshold = settings.priority_preemption_threshold

    def victims(self, scheduler: Scheduler) -> Iterator[int]:
        """Slots to be preempted before the step is planned, each before the next is asked for."""
        table, memory = scheduler.table, scheduler.memory
        running = np.flatnonzero(table.state)
        if not len(running):
            return
        least = int(table.priority[running].min()) + self.threshold
        if scheduler.queue.highest < least:
            return
        candidates = [slot for slot in least_important(table).tolist() if _gives_way(table, slot)]
        promised_slots = promised_pages = num_looked_at = 0
        for request in scheduler.policy.priority_order(scheduler.queue, memory.match, least):
            num_looked_at += 1
            if num_looked_at > MAX_LOOKED_AT:
                return
            if request.uses_cache and scheduler.sharing.leader(request) is not None:
                continue  # it may wait for another's prompt, which needs no victim
            mine = [slot for slot in candidates if request.priority - table.priority[slot] >= self.threshold]
            given_back = int(memory.row_pages[mine].sum()) + len(mine) if mine else 0
            if self._lacks(scheduler, request, promised_slots - len(mine), promised_pages - given_back):
                return  # all of them would not do; who waits behind does not overtake
            while mine and self._lacks(scheduler, request, promised_slots, promised_pages):
                victim = mine.pop(0)
                candidates.remove(victim)
                yield victim
            promised_slots += 1
            promised_pages += memory.num_pages_for(len(request.tokens)) + 1

    def _lacks(self, scheduler: Scheduler, request: Request, promised_slots: int, promised_pages: int) -> bool:
        """Whether slot or memory is lacking, counting what comes free with the steps in flight."""
        table, memory = scheduler.table, scheduler.memory
        if table.num_free + table.num_fenced <= promised_slots:
            return True
        lacking = memory.lacking(request.key, reserve=table.num_running, reuse=request.uses_cache)
        return lacking + promised_pages > memory.pending_pages


def _gives_way(table: RequestTable, slot: int) -> bool:
    request = table.requests[slot]
    return request is not None and not request.protected and request.displaced < MAX_DISPLACED
