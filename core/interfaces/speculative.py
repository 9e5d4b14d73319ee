"""Speculator (draft): proposes tokens that the model then verifies in one step.

A proposal changes how many steps a text takes, never the text: core verifies every token, keeps the longest prefix that
the model itself would have produced (Leviathan et al. 2023, arXiv:2211.17192, for sampled text), and tells the
speculator what was kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.spec import ModelSpec
from core.interfaces.step import Int32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SpeculatorConfig:
    """spec: of the model that verifies. max_tokens: most tokens of a proposal. num_slots: requests at a time."""

    spec: ModelSpec
    max_tokens: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """What is known when N slots are to be continued.

    slots [N]. last_tokens [N] int32: the token that each slot's next position gets. hidden [N, hidden_size]: of the
    model at the position before it, on the device, or None if the speculator does not need it.
    """

    slots: Int32
    last_tokens: Int32
    hidden: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """tokens [N, max_tokens] int32, of which the first counts [N] of each row mean something; 0 proposes nothing.
    probs [N, max_tokens, vocab_size]: what each was drawn from, or None for tokens that were picked, not drawn."""

    tokens: Int32
    counts: Int32
    probs: torch.Tensor | None = None


class Speculator(ABC):
    """One speculator of one engine, called from the runner's thread.

    needs_hidden: whether DraftBatch.hidden is to be filled.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, config: SpeculatorConfig, ctx: PluginContext) -> None:
        self.config = config
        self.ctx = ctx

    @abstractmethod
    def admit(self, slot: int, token_ids: Int32) -> None:
        """A request enters a slot with these tokens [n] (prompt, and what it generated before a preemption). What the
        slot held before is over."""

    @abstractmethod
    def propose(self, batch: DraftBatch) -> Proposal:
        """Continue each slot after its last token. Must not depend on the other slots of the batch."""

    @abstractmethod
    def accepted(self, slots: Int32, tokens: Int32, counts: Int32) -> None:
        """What the model made of it: row i of tokens [N, W] holds counts[i] new tokens of slots[i], proposed ones that
        were kept and the model's own after them."""
