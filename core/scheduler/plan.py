"""PlanBuilder: gathers one step's rows and table updates; Flight: what is remembered of a launched step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.interfaces.step import Admission, StepPlan
from core.memory.manager import TableUpdate

Int32 = npt.NDArray[np.int32]
_NO_ROWS = np.empty(0, np.int32)


@dataclass(slots=True)
class Flight:
    """A step under way. Of its sampled rows: slots [S], seq_lens [S] (KV length it writes), and the slots' epochs
    [S] when it was planned. num_released: slots that had been released until then. num_decodes: how many of the rows,
    the first, are decodes; the others end a prompt. num_tokens: that it computes, counted only for policies that plan
    steps."""

    step: int
    slots: Int32
    seq_lens: Int32
    epochs: npt.NDArray[np.int64]
    num_released: int
    num_decodes: int
    num_tokens: int = 0


class PlanBuilder:
    """One step. `budget` is what is left of its tokens."""

    def __init__(self, step: int, budget: int, num_groups: int) -> None:
        self.step = step
        self.budget = budget
        self.decodes = self.decode_lens = _NO_ROWS
        self.admissions: list[Admission] = []
        self._num_groups = num_groups
        self._prefills: list[tuple[int, int, int, bool]] = []
        self._updates: list[TableUpdate] = []

    @property
    def empty(self) -> bool:
        return not len(self.decodes) and not self._prefills

    def decode(self, slots: Int32, seq_lens: Int32) -> None:
        """Rows of one token each."""
        self.decodes, self.decode_lens = slots, seq_lens
        self.budget -= len(slots)

    def prefill(self, slot: int, q_len: int, seq_len: int, last: bool) -> None:
        """A chunk of a prompt; `last` yields a token."""
        self._prefills.append((slot, q_len, seq_len, last))
        self.budget -= q_len

    def update(self, update: TableUpdate | None) -> None:
        if update is not None:
            self._updates.append(update)

    def build(self) -> StepPlan:
        num_decodes = len(self.decodes)
        rows: list[tuple[npt.NDArray[Any], ...]] = []
        if num_decodes:
            ones = np.ones(num_decodes, np.int32)
            rows.append((self.decodes, ones, self.decode_lens, ones.astype(np.bool_)))
        if self._prefills:
            prefill_slots, chunks, prefill_lens, last = np.array(list(zip(*self._prefills, strict=True)), np.int32)
            rows.append((prefill_slots, chunks, prefill_lens, last.astype(np.bool_)))
        slots, q_lens, seq_lens, samples = (_join(parts) for parts in zip(*rows, strict=True))
        if self._updates:
            page_slots = _join([u.slots for u in self._updates])
            page_index = _join([u.index for u in self._updates])
            page_ids = _join([u.pages for u in self._updates])
        else:
            page_slots, page_index, page_ids = _NO_ROWS, _NO_ROWS, np.empty((self._num_groups, 0), np.int32)
        return StepPlan(
            self.step, slots, num_decodes, q_lens, seq_lens, samples, self.admissions, page_slots, page_index, page_ids
        )


def _join(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Along the last axis."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
