"""CapturedSteps: steps of decodes that the device has recorded, from input ids to tokens, replayed over input buffers
at fixed addresses.

A replay costs the host one copy to the device and one launch. The copy holds a step's slots, positions, lengths and KV
slots, and what has changed in the page tables: those stay on the device, and most steps change a few entries. What the
sampling behind the replay takes from the host travels with it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.attention import AttentionBackend
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.build import Communicator
from core.interfaces.errors import PluginError
from core.interfaces.hardware import StepGraphs
from core.interfaces.model import CausalLM
from core.interfaces.step import Int32, StepPlan
from core.runner.agreement import Agreement
from core.runner.inputs import StepInputs
from core.runner.sampler import Sampled
from core.runner.sampling_inputs import SamplingInputs, room_for
from core.runner.state import RunnerState
from core.runner.transfer import ALIGNMENT, Packed, Transfer, pack

_CHANGES = 1 << 14  # entries of page tables that fit into a step's copy; more travel in one of their own
_CHANGE_BYTES = 12  # index int64, page int32
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay of `size` rows gives, valid until the next one. hidden [size, D]. logits [size, V]. greedy: tokens
    [size], the arg max of each row, which are the last tokens already. result: these and their logits in one."""

    hidden: torch.Tensor
    logits: torch.Tensor
    greedy: Sampled
    result: Packed


@dataclass(frozen=True, slots=True)
class _Region:
    """A part of the input buffer, for one size: first byte, dtype, elements."""

    start: int
    dtype: np.dtype[np.integer]
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count * self.dtype.itemsize

    def of(self, buffer: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        return buffer[self.start : self.end].view(self.dtype)

    def on(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[self.start : self.end].view(getattr(torch, self.dtype.name))


@dataclass(frozen=True, slots=True)
class _Size:
    """One number of rows: its batch, whose device tensors never move, and where its inputs stand."""

    batch: ForwardBatch
    device_slots: torch.Tensor
    slots: _Region
    positions: _Region
    seq_lens: _Region
    mappings: tuple[_Region, ...]

    @property
    def num_bytes(self) -> int:
        return _aligned(self.mappings[-1].end)


class CapturedSteps:
    """One persistent batch for each size that `graphs` records. All sizes share their memory: one step runs at a time.

    last_tokens [S + 1]: as in RunnerState; padding rows read and write the last entry. best_token: the operation.
    tp: the ranks that record and replay alike. max_seqs: most rows of a step. max_pages: columns of a page table.
    Raises PluginError for impossible sizes.
    """

    def __init__(
        self,
        graphs: StepGraphs,
        model: CausalLM,
        attention: tuple[AttentionBackend, ...],
        kv: tuple[tuple[torch.Tensor, ...], ...],
        last_tokens: torch.Tensor,
        transfer: Transfer,
        best_token: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        tp: Communicator,
        *,
        page_size: int,
        max_seqs: int,
        max_pages: int,
    ) -> None:
        sizes = list(graphs.sizes)
        if sizes != sorted(set(sizes)) or (sizes and not 1 <= sizes[0] <= sizes[-1] <= max_seqs):
            kind = type(graphs)
            raise PluginError(
                f"{kind.__module__}.{kind.__qualname__} records steps of {graphs.sizes} rows; sizes must grow and "
                f"lie between 1 and {max_seqs}, the most sequences of a step",
                hint="take EngineFacts.max_seqs into account in HardwareBackend.graphs",
            )
        self.sizes = sizes
        self._graphs = graphs
        self._model = model
        self._last_tokens = last_tokens
        self._transfer = transfer
        self._best_token = best_token
        self._agreement = Agreement(tp, transfer.device)
        self._page_size = page_size
        self._recorded: set[tuple[int, tuple[int, ...]]] = set()  # rows, variant of each cache group
        self._broken: set[tuple[int, tuple[int, ...]]] = set()
        self._started = False
        self._parts: dict[int, tuple[tuple[int, torch.dtype, torch.Size], ...]] = {}  # of the results, by size
        self._replayed: dict[tuple[int, tuple[int, ...]], Replayed] = {}
        device, groups, most = transfer.device, len(attention), max(sizes, default=1)
        # The page tables of all groups, and what they hold as the host knows it.
        self._table = torch.zeros(groups, most, max_pages, dtype=torch.int32, device=device)
        self._mirror = np.zeros((groups, most, max_pages), np.int32)
        self._rows = np.arange(most)
        slot_dtypes = [np.dtype(backend.capabilities.slot_dtype) for backend in attention]
        room = _regions(most, slot_dtypes)[-1].end + _CHANGES * _CHANGE_BYTES + room_for(most) + 2 * ALIGNMENT
        self._buffer = torch.zeros(room, dtype=torch.uint8, device=device)
        self._sizes = {size: self._size(size, slot_dtypes, attention, kv) for size in sizes}

    def size_for(self, plan: StepPlan) -> int:
        """Rows to pad this step to; 0 if it is none that is replayed."""
        num_rows = len(plan.slots)
        if not num_rows or plan.num_decodes != num_rows or np.count_nonzero(plan.samples) != num_rows:
            return 0
        if np.count_nonzero(plan.q_lens != 1):
            return 0
        at = bisect_left(self.sizes, num_rows)
        if at == len(self.sizes):
            return 0
        return self.sizes[at] if self._started or self._graphs.on_demand else 0

    def capture(self) -> None:
        """Record every size, largest first, unless that happens on demand. Raises what is wrong with one of them."""
        self._started = True
        if not self._graphs.on_demand:
            for size in reversed(self.sizes):
                error = self._agreement.attempt(partial(self._record_padding, size))
                if error is not None:
                    raise error

    def _record_padding(self, size: int) -> None:
        """A step of padding rows alone."""
        self._fill(np.empty(0, np.int32), np.empty(0, np.int32), self._mirror, size)
        variants = self._plan(size)
        self._graphs.capture(size, partial(self._step, self._sizes[size]), variants)
        self._recorded.add((size, variants))

    def prepare(
        self, plan: StepPlan, state: RunnerState, size: int
    ) -> tuple[StepInputs, Callable[[], Replayed]] | None:
        """Bring a step of at most `size` decodes, a plan that `state` has applied, to where its recording reads it, and
        plan its attention: the step, and what queues it. None if it cannot be recorded, which is found out when it is
        first needed, or if it has rows that get no token."""
        generating, sampling = state.sampling(plan.slots, plan.seq_lens)
        if generating is not None:
            return None
        device_slots = self._fill(plan.slots, plan.seq_lens, state.page_table, size, sampling)
        variants = self._plan(size)
        if (size, variants) not in self._recorded and not self._record_late(size, variants):
            return None
        step = StepInputs(self._sizes[size].batch, plan.slots, device_slots, True, None, sampling)
        return step, partial(self._replay, size, variants)

    def _replay(self, size: int, variants: tuple[int, ...]) -> Replayed:
        hidden, logits, result = self._graphs.replay(size, variants)
        known = self._replayed.get((size, variants))
        if known is None or known.result.bytes is not result:  # else the same tensors as ever
            packed = Packed(result, self._parts[size])
            tokens, best = packed.unpack(result)
            known = Replayed(hidden, logits, Sampled(tokens, best), packed)
            self._replayed[size, variants] = known
        return known

    def _plan(self, size: int) -> tuple[int, ...]:
        """Plan attention of the step that was filled in; its variants."""
        batch = self._sizes[size].batch
        for backend, layout in zip(batch.attention, batch.layouts, strict=True):
            layout.variant = backend.variant(layout)
        batch.plan_attention()
        return tuple(layout.variant for layout in batch.layouts)

    def _record_late(self, size: int, variants: tuple[int, ...]) -> bool:
        """Record the step that was filled in and planned; whether that worked."""
        if (size, variants) in self._broken:
            return False
        before = self._last_tokens.clone()  # all else that recording may run writes the same again
        step = partial(self._step, self._sizes[size])
        error = self._agreement.attempt(lambda: self._graphs.capture(size, step, variants))
        self._last_tokens.copy_(before)
        if error is not None:  # the step itself can still be launched
            logger.warning("a step of %d rows cannot be recorded; such steps are launched", size, exc_info=error)
            self._broken.add((size, variants))
            return False
        self._recorded.add((size, variants))
        return True

    def _step(self, entry: _Size) -> tuple[torch.Tensor, ...]:
        """What is recorded: every operation of a greedy step on the device."""
        batch = entry.batch
        torch.index_select(self._last_tokens, 0, entry.device_slots, out=batch.input_ids)
        hidden = self._model.forward(batch)
        logits = self._model.compute_logits(hidden)
        best, tokens = self._best_token(logits)
        self._last_tokens.index_copy_(0, entry.device_slots, tokens)
        result = pack([tokens, best.float()])
        self._parts[len(batch.input_ids)] = result.parts
        return hidden, logits, result.bytes

    def _fill(
        self, slots: Int32, seq_lens: Int32, page_table: Int32, size: int, sampling: SamplingInputs | None = None
    ) -> torch.Tensor:
        """Rows of these slots, then padding; returns their slots on the device [N]. sampling: placed on the device if
        there is room."""
        entry, num_rows, transfer = self._sizes[size], len(slots), self._transfer
        lens, padding = seq_lens, size - num_rows
        if padding:
            lens = np.concatenate([lens, np.ones(padding, np.int32)])
        num_pages = -(-int(lens.max()) // self._page_size)
        tables = page_table[:, slots, :num_pages]
        if padding:
            nothing = np.zeros((len(page_table), padding, num_pages), np.int32)
            tables = np.concatenate([tables, nothing], axis=1)
        index, pages = self._changes(tables)
        fits = not transfer.direct and entry.num_bytes + len(index) * _CHANGE_BYTES <= len(self._buffer)
        num_bytes = entry.num_bytes + (len(index) * _CHANGE_BYTES if fits else 0)
        places = None
        if sampling is not None and not transfer.direct:
            sampling_arrays, start = sampling.arrays, _aligned(num_bytes)
            wanted = transfer.places(sampling_arrays)
            if start + wanted.size <= len(self._buffer):
                places, num_bytes = wanted, start + wanted.size
        staged = self._buffer if transfer.direct else transfer.copies.staging(num_bytes)

        view = staged.numpy()
        positions = lens - 1
        page_of_row = positions // self._page_size
        host_slots = entry.slots.of(view)
        host_slots[:num_rows] = slots
        if padding:
            host_slots[num_rows:] = len(self._last_tokens) - 1
        entry.positions.of(view)[:] = positions
        entry.seq_lens.of(view)[:] = lens
        for pages_of_rows, region in zip(tables[:, self._rows[:size], page_of_row], entry.mappings, strict=True):
            # page * page_size + (position - page_of_row * page_size), in the width of the KV slots.
            mapping = region.of(view)
            np.subtract(pages_of_rows, page_of_row, out=mapping)
            mapping *= self._page_size
            mapping += positions
        if fits and len(index):
            changed_index, changed_pages = _change_regions(entry.num_bytes, len(index))
            changed_index.of(view)[:] = index
            changed_pages.of(view)[:] = pages
        if places is not None:
            places.write(view[start:num_bytes], sampling_arrays)
        if not transfer.direct:
            transfer.copies.to_buffer(staged, self._buffer[:num_bytes])
        if places is not None and sampling is not None:
            sampling.place(places.read(self._buffer[start:num_bytes], sampling_arrays))
        if len(index):
            if fits:
                where, what = changed_index.on(self._buffer), changed_pages.on(self._buffer)
            else:
                where, what = transfer.upload(index, pages)
            self._table.view(-1).index_copy_(0, where, what)

        for layout, table in zip(entry.batch.layouts, tables, strict=True):
            # The host's numbers are this step's, the device's tensors are always the same.
            layout.seq_lens, layout.page_table = lens, table
        return entry.device_slots[:num_rows]

    def _changes(self, tables: Int32) -> tuple[npt.NDArray[np.int64], Int32]:
        """Where the device's page tables differ from `tables` [G, size, P], as flat indices, and what belongs there;
        taken for done."""
        _, size, num_pages = tables.shape
        known = self._mirror[:, :size, :num_pages]
        differ = tables != known
        if not np.count_nonzero(differ):  # most steps of few rows
            return np.empty(0, np.int64), np.empty(0, np.int32)
        at = differ.ravel().nonzero()[0]
        row, column = np.divmod(at, num_pages)
        group, row = np.divmod(row, size)
        _, most, columns = self._mirror.shape
        known[:] = tables
        return (group * most + row) * columns + column, tables.reshape(-1)[at]

    def _size(
        self,
        size: int,
        slot_dtypes: list[np.dtype[np.integer]],
        attention: tuple[AttentionBackend, ...],
        kv: tuple[tuple[torch.Tensor, ...], ...],
    ) -> _Size:
        device, buffer = self._transfer.device, self._buffer
        slots, positions, seq_lens, *mappings = _regions(size, slot_dtypes)
        ones, steps = np.ones(size, np.int32), np.arange(size + 1, dtype=np.int32)
        layouts = tuple(
            BatchLayout(
                page_size=self._page_size,
                num_decodes=size,
                q_lens=ones,
                seq_lens=ones,
                cu_q_lens=steps,
                page_table=np.zeros((size, 1), np.int32),
                slot_mapping=mapping.on(buffer),
                device_page_table=table[:size],
                device_seq_lens=seq_lens.on(buffer),
                device_cu_q_lens=torch.arange(size + 1, dtype=torch.int32, device=device),
                captured=True,
            )
            for mapping, table in zip(mappings, self._table, strict=True)
        )
        batch = ForwardBatch(
            input_ids=torch.zeros(size, dtype=torch.int64, device=device),
            positions=positions.on(buffer),
            logits_rows=torch.arange(size, device=device),
            layouts=layouts,
            attention=attention,
            kv=kv,
        )
        return _Size(batch, slots.on(buffer), slots, positions, seq_lens, tuple(mappings))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _regions(size: int, slot_dtypes: list[np.dtype[np.integer]]) -> list[_Region]:
    """Where a step of `size` rows stands in the buffer: slots, positions, lengths, and KV slots of each group."""
    made: list[_Region] = []
    dtypes: list[np.dtype[np.integer]] = [np.dtype(np.int64), np.dtype(np.int64), np.dtype(np.int32), *slot_dtypes]
    for dtype in dtypes:
        made.append(_Region(_aligned(made[-1].end) if made else 0, dtype, size))
    return made


def _change_regions(start: int, count: int) -> tuple[_Region, _Region]:
    index = _Region(start, np.dtype(np.int64), count)
    return index, _Region(index.end, np.dtype(np.int32), count)
