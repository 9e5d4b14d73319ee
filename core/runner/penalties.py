"""What changes logits before sampling: bias, penalties, ids held back by min_tokens. In that order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.step import Admission, Int32
from core.ops import sampling as reference
from core.runner.sampling_table import SamplingTable
from core.runner.transfer import Transfer

_FIRST_ROWS = 4


class TokenCounts:
    """How often each token was generated, and whether it is in the prompt, for slots with penalties.

    counts [R, V] int32 and in_prompt [R, V] bool on the device. Rows are given to slots at their first penalised
    admission and kept; R grows by doubling, so a server without penalties holds nothing.
    """

    def __init__(self, vocab_size: int, transfer: Transfer) -> None:
        self._transfer = transfer
        self._vocab_size = vocab_size
        self._row_of: dict[int, int] = {}
        self.counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=transfer.device)
        self.in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=transfer.device)

    def admit(self, admission: Admission) -> None:
        """Count the tokens of a request that enters a slot; earlier counts of the slot are gone."""
        row = self._row_of.setdefault(admission.slot, len(self._row_of))
        if row >= len(self.counts):
            grown = max(_FIRST_ROWS, 2 * len(self.counts))
            self.counts = _grow(self.counts, grown)
            self.in_prompt = _grow(self.in_prompt, grown)
        tokens = admission.token_ids
        valid = (tokens >= 0) & (tokens < self._vocab_size)
        prompt = np.unique(tokens[: admission.num_prompt][valid[: admission.num_prompt]]).astype(np.int64)
        output = tokens[admission.num_prompt :][valid[admission.num_prompt :]]
        ids, times = np.unique(output, return_counts=True)
        prompt_ids, ids_device, times_device = self._transfer.upload(
            prompt, ids.astype(np.int64), times.astype(np.int32)
        )
        self.counts[row].zero_()
        self.in_prompt[row].zero_()
        self.in_prompt[row].index_fill_(0, prompt_ids, True)
        self.counts[row].index_copy_(0, ids_device, times_device)

    def rows(self, slots: Int32) -> npt.NDArray[np.int64]:
        """Rows of penalised slots."""
        return np.array([self._row_of[slot] for slot in slots.tolist()], np.int64)

    def add(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """One more of `tokens` [R] in each of `rows` [R] (all different)."""
        self.counts[rows, tokens] += 1


def _grow(old: torch.Tensor, rows: int) -> torch.Tensor:
    new = torch.zeros(rows, old.shape[1], dtype=old.dtype, device=old.device)
    new[: len(old)] = old
    return new


def apply_bias(logits: torch.Tensor, table: SamplingTable, rows: Int32, slots: Int32, transfer: Transfer) -> None:
    """Add each row's logit_bias. logits [S, V] float32 in place; rows [B] into it and their slots [B]."""
    entries = [table.bias[slot] for slot in slots.tolist()]
    where = np.repeat(rows.astype(np.int64), [len(ids) for ids, _ in entries])
    index, ids, values = transfer.upload(
        where, np.concatenate([ids for ids, _ in entries]), np.concatenate([values for _, values in entries])
    )
    logits[index, ids] += values


def apply_penalties(
    logits: torch.Tensor,
    table: SamplingTable,
    counts: TokenCounts,
    rows: Int32,
    slots: Int32,
    transfer: Transfer,
    penalize: Callable[..., torch.Tensor] = reference.penalize,
) -> torch.Tensor:
    """Repetition, frequency and presence penalties. logits [S, V] float32 in place; returns the rows of `counts`
    [B] that the sampled tokens are to be added to. penalize: the device's op of that name."""
    scale, frequency, presence, index, count_rows = transfer.upload(
        table.repetition[slots],
        table.frequency[slots],
        table.presence[slots],
        rows.astype(np.int64),
        counts.rows(slots),
    )
    given = counts.counts[count_rows], counts.in_prompt[count_rows]
    logits[index] = penalize(logits[index], *given, scale, frequency, presence)
    return count_rows


def forbid(logits: torch.Tensor, table: SamplingTable, rows: Int32, slots: Int32, transfer: Transfer) -> None:
    """Make end-of-text and stop ids impossible. logits [S, V] float32 in place; rows [B], slots [B]."""
    entries = [table.forbidden[slot] for slot in slots.tolist()]
    where = np.repeat(rows.astype(np.int64), [len(ids) for ids in entries])
    index, ids = transfer.upload(where, np.concatenate(entries))
    logits[index, ids] = float("-inf")
