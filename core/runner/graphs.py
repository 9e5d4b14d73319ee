"""CapturedSteps: steps of decodes that the device has recorded, replayed over input buffers at fixed addresses."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.errors import PluginError
from core.interfaces.hardware import StepGraphs
from core.interfaces.model import CausalLM
from core.interfaces.step import StepPlan


class CapturedSteps:
    """One persistent batch for each size that `graphs` records.

    max_seqs: most rows of a step. max_pages: columns of a page table. Raises PluginError for impossible sizes.
    """

    def __init__(
        self,
        graphs: StepGraphs,
        model: CausalLM,
        attention: tuple[AttentionBackend, ...],
        kv: tuple[tuple[torch.Tensor, ...], ...],
        *,
        max_seqs: int,
        max_pages: int,
        device: torch.device,
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
        self._batches = {size: _empty_batch(size, attention, kv, max_pages=max_pages, device=device) for size in sizes}
        self._recorded: set[int] = set()

    def size_for(self, plan: StepPlan) -> int:
        """Rows to pad this step to; 0 if it is none that is replayed."""
        num_rows = len(plan.slots)
        if not num_rows or plan.num_decodes != num_rows or int(plan.q_lens.max()) != 1:
            return 0
        at = bisect_left(self.sizes, num_rows)
        return self.sizes[at] if at < len(self.sizes) and self.sizes[at] in self._recorded else 0

    def capture(self) -> None:
        """Record every size, largest first."""
        for size in reversed(self.sizes):
            batch = self._batches[size]
            batch.plan_attention()
            self._graphs.capture(size, partial(self._model.forward, batch))
            self._recorded.add(size)

    def run(self, step: ForwardBatch) -> torch.Tensor:
        """Hidden states [size, hidden_size] of a step that was padded to a recorded size; valid until the next."""
        size = len(step.input_ids)
        batch = self._batches[size]
        batch.input_ids.copy_(step.input_ids)
        batch.positions.copy_(step.positions)
        layouts = []
        for kept, given in zip(batch.layouts, step.layouts, strict=True):
            _copy_layout(kept, given)
            # The host's numbers are this step's, the device's tensors are always the same.
            layouts.append(replace(kept, q_lens=given.q_lens, seq_lens=given.seq_lens, page_table=given.page_table))
        replace(batch, layouts=tuple(layouts)).plan_attention()
        return self._graphs.replay(size)


def _copy_layout(kept: BatchLayout, given: BatchLayout) -> None:
    assert kept.device_page_table is not None
    assert kept.device_seq_lens is not None
    assert given.device_page_table is not None
    assert given.device_seq_lens is not None
    kept.slot_mapping.copy_(given.slot_mapping)
    kept.device_page_table[:, : given.device_page_table.shape[1]].copy_(given.device_page_table)
    kept.device_seq_lens.copy_(given.device_seq_lens)


def _empty_batch(
    size: int,
    attention: tuple[AttentionBackend, ...],
    kv: tuple[tuple[torch.Tensor, ...], ...],
    *,
    max_pages: int,
    device: torch.device,
) -> ForwardBatch:
    """A step of `size` padding rows in buffers of its own."""

    def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    ones = np.ones(size, np.int32)
    layouts = tuple(
        BatchLayout(
            page_size=backend.config.page_size,
            num_decodes=size,
            q_lens=ones,
            seq_lens=ones,
            cu_q_lens=np.arange(size + 1, dtype=np.int32),
            page_table=np.zeros((size, 1), np.int32),
            slot_mapping=zeros(size, dtype=getattr(torch, backend.capabilities.slot_dtype)),
            device_page_table=zeros(size, max_pages, dtype=torch.int32),
            device_seq_lens=torch.ones(size, dtype=torch.int32, device=device),
            device_cu_q_lens=torch.arange(size + 1, dtype=torch.int32, device=device),
            captured=True,
        )
        for backend in attention
    )
    return ForwardBatch(
        input_ids=zeros(size, dtype=torch.int64),
        positions=zeros(size, dtype=torch.int64),
        logits_rows=torch.arange(size, device=device),
        layouts=layouts,
        attention=attention,
        kv=kv,
    )
