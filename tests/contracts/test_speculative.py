"""The suite of speculators: looking up repetitions passes, broken ones do not."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from core.interfaces.context import PluginContext
from core.interfaces.speculative import DraftBatch, Proposal, Speculator, SpeculatorConfig
from core.interfaces.step import Int32
from core.testing.contracts.speculative import SpeculativeContract

from .running import failures


class Lookup(Speculator):
    """What followed the last two tokens where they stood before. `fault`: how it is broken."""

    fault: ClassVar[str] = ""

    def __init__(self, config: SpeculatorConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self.texts: dict[int, list[int]] = {}

    def admit(self, slot: int, token_ids: Int32) -> None:
        old = self.texts.get(slot, []) if self.fault == "remembers" else []
        self.texts[slot] = old + [int(t) for t in token_ids]

    def accepted(self, slots: Int32, tokens: Int32, counts: Int32) -> None:
        for slot, row, count in zip(slots, tokens, counts, strict=True):
            taken = row if self.fault == "ignores counts" else row[:count]
            if self.fault != "ignores accepted tokens":
                self.texts[int(slot)] += [int(t) for t in taken]

    def propose(self, batch: DraftBatch) -> Proposal:
        width = self.config.max_tokens
        rows = np.full((len(batch.slots), width), -1, np.int32)
        counts = np.zeros(len(batch.slots), np.int32)
        for i, slot in enumerate(batch.slots):
            text = self.texts[int(slot if self.fault != "takes the row for the slot" else i)]
            found = self._continue(text, width)
            rows[i, : len(found)] = found
            counts[i] = len(found)
        if self.fault == "out of vocabulary":
            rows[:, 0] = self.config.spec.vocab_size
            counts[:] = 1
        if self.fault == "too wide":
            rows = np.pad(rows, ((0, 0), (0, 1)))
        return Proposal(rows.astype(np.int64) if self.fault == "int64" else rows, counts)

    def _continue(self, text: list[int], width: int) -> list[int]:
        for at in range(len(text) - 3, -1, -1):
            if text[at : at + 2] == text[-2:]:
                start = at + (3 if self.fault == "off by one" else 2)
                return text[start : start + width]
        return []


class TestLookup(SpeculativeContract):
    implementation = Lookup
    repeats = True


FAULTS = ("remembers", "ignores accepted tokens", "takes the row for the slot", "out of vocabulary", "too wide",
          "int64", "off by one")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_speculators_fail(fault: str) -> None:
    broken = type("Broken", (Lookup,), {"fault": fault})
    assert failures(type("Suite", (TestLookup,), {"implementation": broken}))
