"""What changes logits before sampling: bias, penalties, ids held back by min_tokens. In that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.step import Admission, Int32
from core.ops import sampling as reference
from core.runner.sampling_table import SamplingTable
from core.runner.transfer import Transfer

Int64 = npt.NDArray[np.int64]

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

    def rows(self, slots: Int32) -> Int64:
        """Rows of penalised slots."""
        return np.array([self._row_of[slot] for slot in slots.tolist()], np.int64)

    def add(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """One more of `tokens` [R] in each of `rows` [R] (all different)."""
        self.counts[rows, tokens] += 1


def _grow(old: torch.Tensor, rows: int) -> torch.Tensor:
    new = torch.zeros(rows, old.shape[1], dtype=old.dtype, device=old.device)
    new[: len(old)] = old
    return new


def bias_arrays(table: SamplingTable, rows: Int64, slots: Int32) -> tuple[Int64, Int64, npt.NDArray[np.float32]]:
    """Row, token id and value of each entry of the logit_bias of `rows` [B], which have these slots [B]."""
    entries = [table.bias[slot] for slot in slots.tolist()]
    where = np.repeat(rows, [len(ids) for ids, _ in entries])
    return where, np.concatenate([ids for ids, _ in entries]), np.concatenate([values for _, values in entries])


def apply_bias(logits: torch.Tensor, bias: Sequence[torch.Tensor]) -> None:
    """logits [S, V] float32 in place; bias: as `bias_arrays`."""
    rows, ids, values = bias
    logits[rows, ids] += values


def penalty_arrays(
    table: SamplingTable, counts: TokenCounts, rows: Int64, slots: Int32
) -> tuple[npt.NDArray[Any], ...]:
    """Of `rows` [B], which have these slots [B]: repetition, frequency, presence [B] float32; `rows`; the rows of
    `counts` [B] that their tokens are in."""
    return table.repetition[slots], table.frequency[slots], table.presence[slots], rows, counts.rows(slots)


def apply_penalties(
    logits: torch.Tensor,
    counts: TokenCounts,
    factors: Sequence[torch.Tensor],
    penalize: Callable[..., torch.Tensor] = reference.penalize,
) -> None:
    """Repetition, frequency and presence penalties. logits [S, V] float32 in place; factors: as `penalty_arrays`.
    penalize: the device's op of that name."""
    repetition, frequency, presence, rows, count_rows = factors
    given = counts.counts[count_rows], counts.in_prompt[count_rows]
    logits[rows] = penalize(logits[rows], *given, repetition, frequency, presence)


def forbidden_arrays(table: SamplingTable, rows: Int64, slots: Int32) -> tuple[Int64, Int64]:
    """Row and token id of each end-of-text and stop id that min_tokens holds back in `rows` [B], which have these
    slots [B]."""
    entries = [table.forbidden[slot] for slot in slots.tolist()]
    return np.repeat(rows, [len(ids) for ids in entries]), np.concatenate(entries)


def forbid(logits: torch.Tensor, forbidden: Sequence[torch.Tensor]) -> None:
    """Make ids impossible. logits [S, V] float32 in place; forbidden: as `forbidden_arrays`."""
    rows, ids = forbidden
    logits[rows, ids] = float("-inf")
