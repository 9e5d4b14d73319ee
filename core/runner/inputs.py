"""StepPlan to ForwardBatch: positions, KV slots and page tables, vectorised over rows and tokens, written where they
travel to the device from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.attention import AttentionBackend
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.errors import EngineError
from core.interfaces.step import Int32, StepPlan
from core.runner.state import RunnerState
from core.runner.transfer import Packing, Transfer, starts_of


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A batch and which of its rows are sampled.

    slots [S] int32, positions [S] int32 (of the tokens to come) on the host; device_slots [S] int64.
    every_row: whether the sampled rows are the first S hidden rows in order, as in a pure decode step.
    """

    batch: ForwardBatch
    slots: Int32
    positions: Int32
    device_slots: torch.Tensor
    every_row: bool


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
        slot_dtypes = [np.dtype(backend.capabilities.slot_dtype) for backend in attention]
        # Tokens first: recorded steps read them where `token_views` says. Then page tables, and of the rows: which
        # logits, slots, sampled slots, lengths and where they begin.
        self._packing = Packing(
            np.int64, np.int64, *slot_dtypes, *[np.int32] * len(attention), *[np.int64] * 3, np.int32, np.int32
        )

    def build(
        self, plan: StepPlan, state: RunnerState, buffer: torch.Tensor | None = None, pad_to: int = 0
    ) -> StepInputs:
        """The batch of a plan that `state` has applied. Raises EngineError if the plan does not fit the mirror.

        buffer: where on the device to build it, else in new memory. pad_to: number of tokens; what is missing is
        filled with token 0 at position 0, stored in the null page, which is none of the layouts' tokens.
        """
        num_rows, num_decodes, groups = len(plan.slots), plan.num_decodes, len(self._attention)
        cu_q_lens = self._starts(plan)
        num_tokens = int(cu_q_lens[-1])
        width = max(num_tokens, pad_to)
        num_pages = -(-int(plan.seq_lens.max()) // self._page_size)
        slots, sampled_lens = plan.slots, plan.seq_lens
        every_row_samples = np.count_nonzero(plan.samples) == num_rows
        if not every_row_samples:
            slots, sampled_lens = slots[plan.samples], sampled_lens[plan.samples]
        lengths = (
            *(width,) * (2 + groups), *(num_rows * num_pages,) * groups,
            len(slots), num_rows, 0 if every_row_samples else len(slots), num_rows, num_rows + 1,
        )  # fmt: skip
        parcel = self._transfer.parcel(self._packing, lengths, buffer)
        ids, positions, *rest = parcel.host
        mappings, tables = rest[:groups], rest[groups : 2 * groups]
        logits_rows, all_slots, sampled_slots, seq_lens, starts = rest[2 * groups :]

        _write_tokens(ids, plan, state, cu_q_lens)
        token_slots, here = self._places(plan, cu_q_lens)
        positions[:num_tokens], positions[num_tokens:] = here, 0
        page_of_token = here // self._page_size
        host_tables = [table[plan.slots, :num_pages] for table in state.page_table]
        for table, rows, mapping, staged in zip(state.page_table, host_tables, mappings, tables, strict=True):
            staged.reshape(rows.shape)[:] = rows
            # page * page_size + (position - page_of_token * page_size), in the width of the slots.
            own = mapping[:num_tokens]
            np.subtract(table[token_slots, page_of_token], page_of_token, out=own)
            own *= self._page_size
            own += here
            mapping[num_tokens:] = 0
        np.subtract(cu_q_lens[1:] if every_row_samples else cu_q_lens[1:][plan.samples], 1, out=logits_rows)
        all_slots[:], seq_lens[:], starts[:] = plan.slots, plan.seq_lens, cu_q_lens
        if not every_row_samples:
            sampled_slots[:] = slots

        token_ids, device_positions, *rest_device = parcel.send()
        device_mappings, device_tables = rest_device[:groups], rest_device[groups : 2 * groups]
        device_logits_rows, device_all, device_sampled, device_lens, device_starts = rest_device[2 * groups :]
        if num_decodes:
            torch.index_select(state.last_tokens, 0, device_all[:num_decodes], out=token_ids[:num_decodes])
        layouts = tuple(
            BatchLayout(
                page_size=self._page_size,
                num_decodes=num_decodes,
                q_lens=plan.q_lens,
                seq_lens=plan.seq_lens,
                cu_q_lens=cu_q_lens,
                page_table=rows,
                slot_mapping=mapping,
                device_page_table=table.view(num_rows, num_pages),
                device_seq_lens=device_lens,
                device_cu_q_lens=device_starts,
            )
            for rows, mapping, table in zip(host_tables, device_mappings, device_tables, strict=True)
        )
        batch = ForwardBatch(token_ids, device_positions, device_logits_rows, layouts, self._attention, self._kv)
        device_slots = device_all if every_row_samples else device_sampled
        return StepInputs(batch, slots, sampled_lens, device_slots, len(slots) == num_tokens)

    def _starts(self, plan: StepPlan) -> Int32:
        """cu_q_lens [N+1]: where the tokens of each row begin."""
        num_rows = len(plan.slots)
        if plan.num_decodes == num_rows:
            return self._count(num_rows + 1)
        starts = np.zeros(num_rows + 1, np.int32)
        np.cumsum(plan.q_lens, out=starts[1:])
        return starts

    def _places(self, plan: StepPlan, cu_q_lens: Int32) -> tuple[Int32, Int32]:
        """Slot and position of each token [T]."""
        if plan.num_decodes == len(plan.slots):
            return plan.slots, plan.seq_lens - 1
        # A row's first position, less the place of its first token among all.
        shift = plan.seq_lens - cu_q_lens[1:]
        return np.repeat(plan.slots, plan.q_lens), np.repeat(shift, plan.q_lens) + self._count(int(cu_q_lens[-1]))

    def _count(self, end: int) -> Int32:
        """0 .. end - 1, not to be changed."""
        if end > len(self._numbers):
            self._numbers = np.arange(2 * end, dtype=np.int32)
        return self._numbers[:end]


def _write_tokens(ids: npt.NDArray[np.int64], plan: StepPlan, state: RunnerState, cu_q_lens: Int32) -> None:
    """Into ids [>= T]: prompt tokens of the prefill rows; the decodes, first, are left for the device to fill."""
    at = plan.num_decodes
    ids[:at] = 0
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
    ids[at:] = 0


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
