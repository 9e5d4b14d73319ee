"""What sampling takes from the host beside the logits: rows, noise keys, limits of filters, factors of penalties.

A step's plan tells all of it, so it is known before the step's inputs go to the device, and travels in their copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.step import Int32
from core.runner import noise, penalties
from core.runner.sampling_table import (
    BIASED,
    FILTERED,
    LOGPROBS,
    MIN_TOKENS,
    PENALISED,
    SAMPLED,
    SamplingTable,
)
from core.runner.transfer import ALIGNMENT, Transfer, starts_of

Int64 = npt.NDArray[np.int64]

# Of one row: its index, keys, temperature, three limits; three factors, two indices; an index for log-probabilities.
_ROW_BYTES = (8 + 8 + 4 + 8 + 8 + 4) + (3 * 4 + 2 * 8) + 8
_MOST_ARRAYS = 3 + 6 + 5 + 2 + 1 + 3  # plain and filtered draws, penalties, min_tokens, log-probabilities, bias
_SPARE_BYTES = 2048  # ids of bias and min_tokens; more of them travel on their own


def room_for(num_rows: int) -> int:
    """Bytes that the inputs of most steps of so many rows take at most in a packed buffer."""
    return num_rows * _ROW_BYTES + _MOST_ARRAYS * ALIGNMENT + _SPARE_BYTES


@dataclass(slots=True)
class Stage:
    """Rows that go through one stage of the sampler together. rows [R] int64: among the step's S; slots [R]: theirs.
    arrays: what the stage takes to the device. tensors: the same there."""

    rows: Int64
    slots: Int32
    arrays: tuple[npt.NDArray[Any], ...]
    tensors: Sequence[torch.Tensor] = ()


@dataclass(frozen=True, slots=True)
class FilterFacts:
    """What `sampling_threshold` wants to know on the host of the rows of one draw."""

    max_k: int
    any_without_k: bool
    any_top_p: bool


@dataclass(slots=True, kw_only=True)
class Draw(Stage):
    """Rows that are drawn by the same calls. arrays: keys [R, 2] int32, temperature [R] float32; with filters top_k [R]
    int64, top_p [R] float64, min_p [R] float32; last `rows`, unless these are all rows of the step."""

    every_row: bool
    filters: FilterFacts | None


@dataclass(slots=True)
class SamplingInputs:
    """Of one step, by stage; None where no row needs it. In the arrays of bias: row, id and value of each entry; of
    penalties: as `penalties.penalty_arrays` has them; of min_tokens: row and id of each entry; of log-probabilities:
    the rows, unless all ask. Rows of min_tokens are those that still lack some."""

    bias: Stage | None = None
    penalties: Stage | None = None
    min_tokens: Stage | None = None
    draws: Sequence[Draw] = ()
    logprobs: Stage | None = None
    placed: bool = False

    @property
    def edit(self) -> bool:
        """Whether some logits change before anything is drawn from them."""
        return self.bias is not None or self.penalties is not None or self.min_tokens is not None

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """All that is to be uploaded, in the order of `place`."""
        return [array for stage in self._stages() for array in stage.arrays]

    @property
    def num_bytes(self) -> int:
        """Of the arrays, in a packed buffer."""
        return starts_of(array.nbytes for array in self.arrays)[1]

    def place(self, tensors: Sequence[torch.Tensor]) -> None:
        """`arrays` are on the device now."""
        at = 0
        for stage in self._stages():
            end = at + len(stage.arrays)
            stage.tensors = tensors[at:end]
            at = end
        self.placed = True

    def upload(self, transfer: Transfer) -> None:
        """In a copy of their own, unless they are on the device already."""
        if not self.placed:
            arrays = self.arrays
            self.place(transfer.upload(*arrays) if arrays else ())

    def _stages(self) -> list[Stage]:
        known = (self.bias, self.penalties, self.min_tokens, *self.draws, self.logprobs)
        return [stage for stage in known if stage is not None]


def sampling_inputs(
    table: SamplingTable,
    counts: penalties.TokenCounts,
    flags: npt.NDArray[np.uint8],
    slots: Int32,
    positions: Int32,
    chunk: int,
) -> SamplingInputs | None:
    """Of rows with these flags and slots [S], whose tokens will stand at `positions` [S]; None if all of them take the
    arg max of what the model gives and ask for nothing else. chunk: most rows of one draw."""
    union = int(np.bitwise_or.reduce(flags))
    made = SamplingInputs()
    if union & BIASED:
        rows = np.flatnonzero(flags & BIASED)
        made.bias = Stage(rows, slots[rows], penalties.bias_arrays(table, rows, slots[rows]))
    if union & PENALISED:
        rows = np.flatnonzero(flags & PENALISED)
        made.penalties = Stage(rows, slots[rows], penalties.penalty_arrays(table, counts, rows, slots[rows]))
    if union & MIN_TOKENS:
        rows = np.flatnonzero(flags & MIN_TOKENS)
        rows = rows[table.below_min_tokens(slots[rows], positions[rows])]
        if len(rows):
            made.min_tokens = Stage(rows, slots[rows], penalties.forbidden_arrays(table, rows, slots[rows]))
    if union & SAMPLED:
        made.draws = _draws(table, flags, union, slots, positions, chunk)
    if union & LOGPROBS:
        rows = np.flatnonzero(flags & LOGPROBS)
        made.logprobs = Stage(rows, slots[rows], () if len(rows) == len(slots) else (rows,))
    elif not made.edit and not made.draws:  # enough tokens everywhere
        return None
    return made


def _draws(
    table: SamplingTable, flags: npt.NDArray[np.uint8], union: int, slots: Int32, positions: Int32, chunk: int
) -> list[Draw]:
    """Rows without filters, then those with some, at most `chunk` at a time."""
    keys = noise.row_keys(table.seed[slots], positions)
    ways = flags & (SAMPLED | FILTERED)
    draws = []
    for way in (SAMPLED, SAMPLED | FILTERED) if union & FILTERED else (SAMPLED,):
        rows = np.flatnonzero(ways == way)
        for start in range(0, len(rows), chunk):
            here = rows[start : start + chunk]
            every_row = len(here) == len(slots)
            own = slots if every_row else slots[here]
            arrays: list[npt.NDArray[Any]] = [keys if every_row else keys[here], table.temperature[own]]
            filters = None
            if way & FILTERED:
                top_k, top_p = table.top_k[own], table.top_p[own]
                filters = FilterFacts(int(top_k.max()), bool((top_k == 0).any()), bool((top_p < 1.0).any()))
                arrays += [top_k, top_p, table.min_p[own]]
            if not every_row:
                arrays.append(here)
            draws.append(Draw(here, own, tuple(arrays), every_row=every_row, filters=filters))
    return draws
