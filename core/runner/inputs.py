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
from core.runner.state import RunnerState
from core.runner.transfer import Transfer, starts_of

Int64 = npt.NDArray[np.int64]


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


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the tokens stand. q_lens, seq_lens [N] int32; cu_q_lens [N+1] int32; positions [T] int64;
    rows [T]: each token's row of the plan."""

    q_lens: Int32
    seq_lens: Int32
    cu_q_lens: Int32
    positions: Int64
    rows: Int64


def build(
    plan: StepPlan,
    state: RunnerState,
    transfer: Transfer,
    page_size: int,
    attention: tuple[AttentionBackend, ...],
    kv: tuple[tuple[torch.Tensor, ...], ...],
    buffer: torch.Tensor | None = None,
    pad_to: int = 0,
) -> StepInputs:
    """The batch of a plan that `state` has applied. Raises EngineError if the plan does not fit the mirror.

    buffer: where on the device to build it, else in new memory. pad_to: number of tokens; what is missing is filled
    with token 0 at position 0, stored in the null page, which is none of the layouts' tokens.
    """
    shape = _shape(plan)
    if plan.samples.all():
        slots, positions = plan.slots, plan.seq_lens
        logits_rows = shape.cu_q_lens[1 : len(plan.slots) + 1].astype(np.int64) - 1
    else:
        slots, positions = plan.slots[plan.samples], plan.seq_lens[plan.samples]
        logits_rows = shape.cu_q_lens[1:][plan.samples].astype(np.int64) - 1

    num_pages = -(-int(plan.seq_lens.max()) // page_size)
    page_of_token, offset = np.divmod(shape.positions, page_size)
    tables, mappings = [], []
    for table, backend in zip(state.page_table, attention, strict=True):
        rows = table[plan.slots, :num_pages]
        tables.append(rows)
        mapping = rows[shape.rows, page_of_token].astype(np.int64) * page_size + offset
        mappings.append(_padded(mapping.astype(backend.capabilities.slot_dtype, copy=False), pad_to))

    upload = transfer.upload if buffer is None else partial(transfer.upload_into, buffer)
    # Tokens first: recorded steps read them where `token_views` says.
    token_ids, device_positions, *rest = upload(
        _padded(_host_tokens(plan, state, shape), pad_to), _padded(shape.positions, pad_to), *mappings, *tables,
        logits_rows, plan.slots.astype(np.int64), slots.astype(np.int64), shape.seq_lens, shape.cu_q_lens,
    )  # fmt: skip
    groups = len(tables)
    rows_device, all_slots, sampled_slots, seq_lens, cu_q_lens = rest[2 * groups :]
    if decodes := plan.num_decodes:
        torch.index_select(state.last_tokens, 0, all_slots[:decodes], out=token_ids[:decodes])
    layouts = tuple(
        BatchLayout(
            page_size=page_size,
            num_decodes=plan.num_decodes,
            q_lens=shape.q_lens,
            seq_lens=shape.seq_lens,
            cu_q_lens=shape.cu_q_lens,
            page_table=table,
            slot_mapping=mapping,
            device_page_table=device_table,
            device_seq_lens=seq_lens,
            device_cu_q_lens=cu_q_lens,
        )
        for table, mapping, device_table in zip(tables, rest[:groups], rest[groups : 2 * groups], strict=True)
    )
    batch = ForwardBatch(token_ids, device_positions, rows_device, layouts, attention, kv)
    return StepInputs(batch, slots, positions, sampled_slots, len(logits_rows) == len(shape.positions))


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


def _padded(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """values [T] and zeros up to `length`, if that is more."""
    return values if length <= len(values) else np.concatenate([values, np.zeros(length - len(values), values.dtype)])


def _shape(plan: StepPlan) -> _Shape:
    num_rows = len(plan.slots)
    if plan.num_decodes == num_rows:
        cu_q_lens = np.arange(num_rows + 1, dtype=np.int32)
        return _Shape(plan.q_lens, plan.seq_lens, cu_q_lens, plan.seq_lens.astype(np.int64) - 1, np.arange(num_rows))
    cu_q_lens = np.zeros(num_rows + 1, np.int32)
    np.cumsum(plan.q_lens, out=cu_q_lens[1:])
    rows = np.repeat(np.arange(num_rows), plan.q_lens)
    start = plan.seq_lens.astype(np.int64) - plan.q_lens - cu_q_lens[:-1]
    positions = np.arange(cu_q_lens[-1], dtype=np.int64) + start[rows]
    return _Shape(plan.q_lens, plan.seq_lens, cu_q_lens, positions, rows)


def _host_tokens(plan: StepPlan, state: RunnerState, shape: _Shape) -> Int64:
    """[T] int64: prompt tokens of the prefill rows; the decodes, first, are left for the device to fill."""
    ids = np.zeros(len(shape.positions), np.int64)
    for row in range(plan.num_decodes, len(plan.slots)):
        end = int(plan.seq_lens[row])
        chunk = state.tokens[plan.slots[row]][end - int(plan.q_lens[row]) : end]
        if len(chunk) != plan.q_lens[row]:
            raise EngineError(
                f"step {plan.step} prefills slot {plan.slots[row]} up to token {end}, "
                f"but it was admitted with {len(state.tokens[plan.slots[row]])}"
            )
        ids[shape.cu_q_lens[row] : shape.cu_q_lens[row + 1]] = chunk
    return ids
