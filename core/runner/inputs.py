"""StepPlan to ForwardBatch: positions, KV slots and page tables, vectorised over rows and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.attention import AttentionBackend
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.errors import EngineError
from core.interfaces.step import Int32, StepPlan
from core.runner.extras import Int64
from core.runner.sampling_inputs import SamplingInputs
from core.runner.state import RunnerState
from core.runner.transfer import Transfer, starts_of


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A batch and which of its rows are sampled.

    slots [S] int32 on the host. generating [R]: which of these rows get a token; None if all. device_slots [R] int64:
    their slots. every_row: whether they are the first R hidden rows in order, as in a pure decode step. sampling: what
    their sampling takes from the host, None if nothing; on the device already where it had room in the step's copy.
    """

    batch: ForwardBatch
    slots: Int32
    device_slots: torch.Tensor
    every_row: bool
    generating: Int64 | None = None
    sampling: SamplingInputs | None = None

    @property
    def num_drawn(self) -> int:
        """R, the rows that get a token."""
        return len(self.slots) if self.generating is None else len(self.generating)


class InputBuilder:
    """Builds the batches of one engine. page_size: tokens of a page."""

    def __init__(
        self,
        transfer: Transfer,
        attention: tuple[AttentionBackend, ...],
        kv: tuple[tuple[torch.Tensor, ...], ...],
        *,
        page_size: int,
    ) -> None:
        self._transfer = transfer
        self._attention = attention
        self._kv = kv
        self._page_size = page_size
        self._numbers = np.arange(1024, dtype=np.int32)
        self._slot_dtypes = [np.dtype(backend.capabilities.slot_dtype) for backend in attention]

    def build(
        self, plan: StepPlan, state: RunnerState, buffer: torch.Tensor | None = None, pad_to: int = 0
    ) -> StepInputs:
        """The batch of a plan that `state` has applied. Raises EngineError if the plan does not fit the mirror.

        buffer: where on the device to build it, else in new memory. pad_to: number of tokens; what is missing is
        filled with token 0 at position 0, stored in the null page, which is none of the layouts' tokens.
        """
        num_rows, num_decodes, groups = len(plan.slots), plan.num_decodes, len(self._attention)
        if num_decodes == num_rows:
            num_tokens, cu_q_lens = num_rows, self._count(num_rows + 1)
            token_slots, positions = plan.slots, plan.seq_lens - 1
        else:
            cu_q_lens = np.zeros(num_rows + 1, np.int32)
            plan.q_lens.cumsum(out=cu_q_lens[1:])
            num_tokens = int(cu_q_lens[-1])
            # A row's first position less the place of its first token among all, and then each token's place.
            positions = (plan.seq_lens - cu_q_lens[1:]).repeat(plan.q_lens) + self._count(num_tokens)
            token_slots = plan.slots.repeat(plan.q_lens)
        slots, sampled_lens, ends = plan.slots, plan.seq_lens, cu_q_lens[1:]
        every_row_samples = np.count_nonzero(plan.samples) == num_rows
        if not every_row_samples:
            slots, sampled_lens, ends = slots[plan.samples], sampled_lens[plan.samples], ends[plan.samples]
        generating, sampling = state.sampling(slots, sampled_lens)
        drawn_slots = slots
        if generating is not None:
            drawn_slots, ends = slots[generating], ends[generating]

        num_pages = -(-int(plan.seq_lens.max()) // self._page_size)
        page_of_token = positions // self._page_size
        tables, mappings = [], []
        for table, dtype in zip(state.page_table, self._slot_dtypes, strict=True):
            tables.append(table[plan.slots, :num_pages])
            # page * page_size + (position - page_of_token * page_size), in the width of the KV slots.
            mapping = np.subtract(table[token_slots, page_of_token], page_of_token, dtype=dtype)
            mapping *= self._page_size
            mapping += positions
            mappings.append(_padded(mapping, pad_to))

        upload = self._transfer.upload if buffer is None else partial(self._transfer.upload_into, buffer)
        # Tokens first: recorded steps read them where `token_views` says.
        arrays = [
            _padded(_host_tokens(plan, state, num_tokens), pad_to), _padded(positions.astype(np.int64), pad_to),
            *mappings, *tables, np.subtract(ends, 1, dtype=np.int64), plan.slots.astype(np.int64), plan.seq_lens,
            cu_q_lens,
        ]  # fmt: skip
        if drawn_slots is not plan.slots:
            arrays.append(drawn_slots.astype(np.int64))
        own = len(arrays)
        if sampling is not None and (buffer is None or self._has_room(buffer, arrays, sampling)):
            arrays += sampling.arrays
        token_ids, device_positions, *rest = tensors = upload(*arrays)
        if len(tensors) > own and sampling is not None:
            sampling.place(tensors[own:])
        device_mappings, device_tables = rest[:groups], rest[groups : 2 * groups]
        logits_rows, all_slots, seq_lens, starts, *drawn = rest[2 * groups : own - 2]
        if num_decodes:
            torch.index_select(state.last_tokens, 0, all_slots[:num_decodes], out=token_ids[:num_decodes])
        layouts = tuple(
            BatchLayout(
                page_size=self._page_size,
                num_decodes=num_decodes,
                q_lens=plan.q_lens,
                seq_lens=plan.seq_lens,
                cu_q_lens=cu_q_lens,
                page_table=table,
                slot_mapping=mapping,
                device_page_table=device_table,
                device_seq_lens=seq_lens,
                device_cu_q_lens=starts,
            )
            for table, mapping, device_table in zip(tables, device_mappings, device_tables, strict=True)
        )
        batch = ForwardBatch(token_ids, device_positions, logits_rows, layouts, self._attention, self._kv)
        device_slots = drawn[0] if drawn else all_slots
        return StepInputs(batch, slots, device_slots, len(drawn_slots) == num_tokens, generating, sampling)

    def _has_room(self, buffer: torch.Tensor, arrays: list[npt.NDArray[Any]], sampling: SamplingInputs) -> bool:
        """Whether what sampling takes fits behind `arrays`. On the CPU it needs no copy at all."""
        used = starts_of(array.nbytes for array in arrays)[1]
        return not self._transfer.direct and used + sampling.num_bytes <= len(buffer)

    def _count(self, end: int) -> Int32:
        """0 .. end - 1, not to be changed."""
        if end > len(self._numbers):
            self._numbers = np.arange(2 * end, dtype=np.int32)
        return self._numbers[:end]


def _host_tokens(plan: StepPlan, state: RunnerState, num_tokens: int) -> npt.NDArray[np.int64]:
    """[T]: prompt tokens of the prefill rows; the decodes, first, are left for the device to fill."""
    ids, at = np.zeros(num_tokens, np.int64), plan.num_decodes
    rows = (plan.slots[at:].tolist(), plan.q_lens[at:].tolist(), plan.seq_lens[at:].tolist())
    for slot, q_len, end in zip(*rows, strict=True):
        chunk = state.tokens[slot][end - q_len : end]
        if len(chunk) != q_len:
            raise EngineError(
                f"step {plan.step} prefills slot {slot} up to token {end}, "
                f"but it was admitted with {len(state.tokens[slot])}"
            )
        ids[at : at + q_len] = chunk
        at += q_len
    return ids


def _padded(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """values [T] and zeros up to `length`, if that is more."""
    return values if length <= len(values) else np.concatenate([values, np.zeros(length - len(values), values.dtype)])


def token_views(
    buffer: torch.Tensor, num_tokens: int, slot_dtypes: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Ids, positions and KV slots of each group, of a step of `num_tokens` tokens that is built in `buffer`."""
    dtypes = [torch.int64, torch.int64, *(getattr(torch, name) for name in slot_dtypes)]
    sizes = [num_tokens * dtype.itemsize for dtype in dtypes]
    ids, positions, *mappings = (
        buffer[start : start + size].view(dtype)
        for start, size, dtype in zip(starts_of(sizes)[0], sizes, dtypes, strict=True)
    )
    return ids, positions, mappings
