"""The worker's mirror of the request table.

A plan carries only what changed; everything else a step needs is here. The mirror follows plans in order and has no
other input, so several workers given the same plans hold the same mirror.
"""

from __future__ import annotations

import numpy as np
import torch

from core.interfaces.step import Int32, StepPlan
from core.runner.extras import Int64, RowWishes
from core.runner.processors import ProcessedRows
from core.runner.sampler import Sampler
from core.runner.sampling_inputs import SamplingInputs
from core.runner.transfer import Transfer


class RunnerState:
    """Indexed by slot.

    page_table [G, S, P] int32. tokens: what each slot was admitted with, the ids that prefill chunks read (host).
    last_tokens [S + 1] int64 on the device: newest token of each slot, the ids that decodes read; written by the
    sampler without passing the host, so the next step can be launched before this one's tokens are known. The last
    entry is that of padding rows. wishes: what requests ask for beside tokens. processed: requests with logit
    processors.
    """

    def __init__(
        self,
        num_groups: int,
        num_slots: int,
        max_pages: int,
        last_tokens: torch.Tensor,
        sampler: Sampler,
        transfer: Transfer,
        wishes: RowWishes,
        processed: ProcessedRows,
    ) -> None:
        self.page_table = np.zeros((num_groups, num_slots, max_pages), np.int32)
        self.tokens: list[Int32] = [np.empty(0, np.int32)] * num_slots
        self.last_tokens = last_tokens
        self.sampler = sampler
        self.wishes = wishes
        self.processed = processed
        self._transfer = transfer

    def apply(self, plan: StepPlan) -> None:
        """Admissions, then page updates. An admission overwrites all that its slot held."""
        if plan.admissions:
            for admission in plan.admissions:
                self.page_table[:, admission.slot] = 0
                self.tokens[admission.slot] = np.array(admission.token_ids, np.int32)  # a copy: the mirror's own
                self.sampler.admit(admission)
                self.wishes.admit(admission)
                self.processed.admit(admission)
            self._set_last_tokens(plan)
        if len(plan.page_slots):
            self.page_table[:, plan.page_slots, plan.page_index] = plan.page_ids

    def sampling(self, slots: Int32, positions: Int32) -> tuple[Int64 | None, SamplingInputs | None]:
        """Of a step's sampled rows [S], whose tokens will stand at `positions` [S]: which of them get a token, None if
        all; and what sampling these takes from the host, None if nothing."""
        generating = self.wishes.generating(slots)
        if generating is not None:
            slots, positions = slots[generating], positions[generating]
        return generating, self.sampler.inputs(slots, positions)

    def _set_last_tokens(self, plan: StepPlan) -> None:
        """So that even a slot whose first step is a decode (all but the last token cached) reads its own token. Not of
        prompts that this step completes, as most do: it reads them from the host and writes the token it draws."""
        completed = set(plan.slots[plan.num_decodes :][plan.samples[plan.num_decodes :]].tolist())
        rest = [admission for admission in plan.admissions if admission.slot not in completed]
        if rest:
            slots, last = self._transfer.upload(
                np.array([admission.slot for admission in rest], np.int64),
                np.array([int(admission.token_ids[-1]) for admission in rest], np.int64),
            )
            self.last_tokens.index_copy_(0, slots, last)
