"""SpeculativeContract: the laws of proposers of draft tokens (draft kind).

A speculator may propose badly; it may never propose something that is not a proposal, mix up slots, or remember a
request that is over.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from core.interfaces.spec import ModelSpec
from core.interfaces.speculative import DraftBatch, Proposal, Speculator, SpeculatorConfig
from core.interfaces.step import Int32
from core.testing.contracts.base import Contract
from core.testing.mock_model import MockConfig, MockModel

NUM_SLOTS = 4


class SpeculativeContract(Contract):
    """Shapes, ranges, independence of slots, and forgetting."""

    kind = "speculative"

    max_tokens: ClassVar[int] = 3
    """Longest proposal to ask for."""

    repeats: ClassVar[bool] = False
    """Whether a text that repeats itself is continued as before (lookup in the text so far)."""

    def spec(self) -> ModelSpec:
        """Of the model that verifies; override it if yours needs a special one."""
        return MockModel.spec(MockConfig().hf_config())

    def speculator(self, max_tokens: int | None = None) -> Speculator:
        config = SpeculatorConfig(self.spec(), max_tokens or self.max_tokens, NUM_SLOTS)
        made = self.plugin()(config, self.context(self.device()))
        assert isinstance(made, Speculator)
        return made

    def batch(self, slots: Int32, last: Int32) -> DraftBatch:
        hidden = None
        if self.plugin().needs_hidden:
            import torch

            hidden = self.random(len(slots), self.spec().hidden_size, dtype=torch.float32, seed=int(last.sum()))
        return DraftBatch(slots, last, hidden)

    def proposed(self, speculator: Speculator, slots: Int32, last: Int32) -> list[list[int]]:
        """The proposals, checked."""
        proposal = speculator.propose(self.batch(slots, last))
        self.check(speculator, proposal, len(slots))
        return [list(map(int, row[:n])) for row, n in zip(proposal.tokens, proposal.counts, strict=True)]

    def check(self, speculator: Speculator, proposal: Proposal, num_rows: int) -> None:
        width, vocab_size = speculator.config.max_tokens, self.spec().vocab_size
        assert proposal.tokens.shape == (num_rows, width)
        assert proposal.tokens.dtype == np.int32
        assert proposal.counts.shape == (num_rows,)
        assert proposal.counts.dtype == np.int32
        assert ((proposal.counts >= 0) & (proposal.counts <= width)).all(), f"counts {proposal.counts}"
        for row, count in zip(proposal.tokens, proposal.counts, strict=True):
            assert ((row[:count] >= 0) & (row[:count] < vocab_size)).all(), f"tokens {row[:count]} of {vocab_size}"
        if proposal.probs is not None:
            assert tuple(proposal.probs.shape) == (num_rows, width, vocab_size)
            for i, count in enumerate(proposal.counts):
                rows = proposal.probs[i, :count].double().cpu()
                fine = bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < 1e-3).all())
                assert fine, f"row {i} of probs is no distribution"

    def texts(self) -> list[Int32]:
        """Prompts of NUM_SLOTS requests, that repeat themselves and differ from each other."""
        size = self.spec().vocab_size
        return [np.array([(7 * slot + i % 5) % size for i in range(12)], np.int32) for slot in range(NUM_SLOTS)]

    def admit_all(self, speculator: Speculator) -> tuple[Int32, Int32]:
        """Admits all texts but for the last token of each; returns slots and those tokens."""
        texts = self.texts()
        for slot, text in enumerate(texts):
            speculator.admit(slot, text)
        return np.arange(NUM_SLOTS, dtype=np.int32), np.array([text[-1] for text in texts], np.int32)

    def test_a_proposal_is_a_proposal(self) -> None:
        for width in (1, self.max_tokens):
            speculator = self.speculator(width)
            self.proposed(speculator, *self.admit_all(speculator))

    def test_no_rows_at_all(self) -> None:
        speculator = self.speculator()
        assert self.proposed(speculator, np.empty(0, np.int32), np.empty(0, np.int32)) == []

    def test_a_row_does_not_depend_on_the_others(self) -> None:
        together = self.speculator()
        slots, last = self.admit_all(together)
        everything = self.proposed(together, slots, last)
        for slot in slots:
            alone = self.speculator()
            alone.admit(int(slot), self.texts()[slot])
            one = self.proposed(alone, slots[slot : slot + 1], last[slot : slot + 1])
            assert one == [everything[slot]] or self.plugin().needs_hidden, f"slot {slot}"

    def test_order_of_rows_is_the_batch_s(self) -> None:
        first, second = self.speculator(), self.speculator()
        slots, last = self.admit_all(first)
        self.admit_all(second)
        straight = self.proposed(first, slots, last)
        back = self.proposed(second, slots[::-1].copy(), last[::-1].copy())
        assert straight == back[::-1] or self.plugin().needs_hidden

    def test_a_new_request_in_a_slot_forgets_the_old_one(self) -> None:
        used, fresh = self.speculator(), self.speculator()
        self.admit_all(used)
        used.accepted(np.array([1], np.int32), np.array([[5, 6]], np.int32), np.array([2], np.int32))
        # Ends like the old text went on, so that a memory of it shows.
        text = np.array([1, 2, *self.texts()[1][:2]], np.int32)
        slot, last = np.array([1], np.int32), text[-1:]
        for speculator in (used, fresh):
            speculator.admit(1, text)
        assert self.proposed(used, slot, last) == self.proposed(fresh, slot, last)

    def test_accepted_tokens_count(self) -> None:
        """A text that came in by `accepted` is continued like one that came in by `admit`."""
        grown, whole = self.speculator(), self.speculator()
        text = self.texts()[2]
        grown.admit(0, text[:4])
        for token in text[4:]:
            grown.accepted(np.array([0], np.int32), np.array([[token]], np.int32), np.array([1], np.int32))
        whole.admit(0, text)
        slot, last = np.array([0], np.int32), text[-1:]
        assert self.proposed(grown, slot, last) == self.proposed(whole, slot, last) or self.plugin().needs_hidden

    def test_repetition_is_continued(self) -> None:
        self.require(self.repeats, "repeats")
        speculator = self.speculator()
        slots, last = self.admit_all(speculator)
        for slot, row in enumerate(self.proposed(speculator, slots, last)):
            text = list(map(int, self.texts()[slot]))
            period = text[:5]
            wanted = [period[(len(text) + i) % 5] for i in range(self.max_tokens)]
            fine = bool(row) and row == wanted[: len(row)]
            assert fine, f"slot {slot}: {row}, the text goes on with {wanted}"
