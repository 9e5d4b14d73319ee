"""FollowingRunner: a rank that computes its share of each step and decodes the tokens that rank 0 drew."""

from __future__ import annotations

import numpy as np
import torch

from core.interfaces.step import StepPlan, StepResult, TokenMasks
from core.runner.runner import ModelRunner
from core.runner.running_step import Computed, Pending


class FollowingRunner(ModelRunner):
    """Runs the same plans as rank 0, and with them the same collectives in the same order.

    It samples nothing. Rank 0's tokens come by a broadcast of a few bytes, whose wait is the device's. That every rank
    drew the same by itself would hang on the bits of kernels that each of them may have tuned in its own way; one
    token apart, the ranks would go on computing nonsense without an error. This way it cannot happen, and what
    sampling needs (masks, processors, penalties, seeds) stays on rank 0.

    The results of its steps tell of success alone: they hold no tokens.
    """

    def _sample(self, computed: Computed, masks: TokenMasks | None) -> Pending:
        step = computed.step
        if step.num_drawn:
            if computed.replayed is None:  # else it was recorded with the logits
                self.model.compute_logits(computed.hidden)  # rank 0 gathers this rank's share of them
            tokens = torch.empty(step.num_drawn, dtype=torch.int64, device=self.device)
            if self.config.broadcast is not None:
                self._state.last_tokens.index_copy_(0, step.device_slots, self.config.broadcast(tokens))
        return Pending(step.slots, computed.times, None)

    def finish(self, plan: StepPlan, pending: Pending, started_s: float) -> StepResult:
        """Wait for a queued step."""
        if pending.event is not None:
            self._hardware.wait_event(pending.event)
        self.stats.steps += 1
        self.stats.tokens += plan.num_tokens
        num_rows = len(pending.slots)
        return StepResult(
            step=plan.step,
            slots=pending.slots,
            tokens=np.zeros((num_rows, 1), np.int32),
            counts=np.zeros(num_rows, np.int32),
            failed=np.zeros(num_rows, np.bool_),
        )
