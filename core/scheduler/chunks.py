"""PromptChunks: prompts that are under way, and how much of each the next step computes."""

from __future__ import annotations

from core.scheduler.plan import PlanBuilder
from core.scheduler.table import DECODE, RequestTable


class PromptChunks:
    """Slots whose prompts take several steps, first admitted first."""

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        self._slots: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def plan(self, plan: PlanBuilder) -> None:
        """A chunk of each, as long as the budget lasts."""
        for slot in tuple(self._slots):
            if plan.budget <= 0:
                break
            self.plan_one(plan, slot)

    def plan_one(self, plan: PlanBuilder, slot: int) -> None:
        """As much of a prompt as the budget allows, be it the first chunk or a later one."""
        table = self._table
        start, end = int(table.seq_len[slot]), int(table.prefill_len[slot])
        num = min(end - start, plan.budget)
        last = start + num == end
        table.seq_len[slot] = start + num
        if last:
            table.state[slot] = DECODE
            self._slots.pop(slot, None)
        else:
            self._slots[slot] = None
        plan.prefill(slot, num, start + num, last)

    def drop(self, slot: int) -> None:
        """The slot's request has left it; harmless if its prompt was complete."""
        self._slots.pop(slot, None)
