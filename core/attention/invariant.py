"""Attention whose result has the same bits however a sequence is cut into chunks and whoever is in the batch.

A sequence's positions are cut into blocks of `BLOCK_ROWS`, at fixed places. Whatever queries of a block a step has,
the call is that of the whole block: all its rows, absent ones zero, against all keys up to the block's end, those
that are not there yet or lie behind a query masked. So the shape of a call, and a query's place in it, follow from
the query's position alone: a decoded token, one of a chunk, and one computed again after a preemption get equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.attention.kernels import apply_sinks, attend, attend_lse
from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionCapabilities, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, StateKind

BLOCK_ROWS = 16


@dataclass(frozen=True, slots=True)
class _Piece:
    """Step rows first_row .. last_row: queries of one block, the first of them at `offset` in it. slots [L] int64: KV
    slots of the keys. mask [BLOCK_ROWS, L] additive."""

    first_row: int
    last_row: int
    offset: int
    slots: torch.Tensor
    mask: torch.Tensor


class BatchInvariantAttention(TorchNativeAttention):
    """Slower than the others: a call for each sequence and block, and a decoded token costs a block's arithmetic."""

    capabilities = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}),
        softcap=True,
        sinks=True,
        batch_invariant=True,
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._pieces: dict[int | None, list[_Piece]] = {}
        self._num_tokens = 0

    def plan(self, layout: BatchLayout) -> None:
        self._slots = layout.slot_mapping
        self._num_tokens = layout.num_tokens
        self._pieces = {window: self._cut(layout, window) for window in {s.window for s in self.config.layers.values()}}

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._slots is not None, "plan() comes before run()"
        spec = self.config.layers[layer]
        if k is not None and v is not None:
            kv[0].index_copy_(0, self._slots, k.flatten(1))
            kv[1].index_copy_(0, self._slots, v.flatten(1))
        out = q.new_zeros(q.shape[0], q.shape[1], spec.v_head_dim)
        for piece in self._pieces[spec.window]:
            out[piece.first_row : piece.last_row] = self._attend(q, piece, kv, spec, sinks)
        return out

    def _attend(
        self,
        q: torch.Tensor,
        piece: _Piece,
        kv: tuple[torch.Tensor, ...],
        spec: AttentionSpec,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """[M, Hq, Dv] of the M queries of a piece. KV heads are the batch, the query heads of a group its heads."""
        num_kv_heads = self.config.num_kv_heads
        group = q.shape[1] // num_kv_heads
        num = piece.last_row - piece.first_row
        block = q.new_zeros(num_kv_heads, group, BLOCK_ROWS, q.shape[2])
        mine = q[piece.first_row : piece.last_row].unflatten(1, (num_kv_heads, group))
        block[:, :, piece.offset : piece.offset + num] = mine.permute(1, 2, 0, 3)
        keys, values = (
            buffer.index_select(0, piece.slots).view(len(piece.slots), num_kv_heads, -1).transpose(0, 1)
            .unsqueeze(1).expand(-1, group, -1, -1)
            for buffer in kv
        )  # fmt: skip
        if sinks is None and spec.softcap is None:
            made = attend(block, keys, values, spec.scale, piece.mask)
        else:
            part = attend_lse(block, keys, values, spec.scale, piece.mask, softcap=spec.softcap)
            made = part[0] if sinks is None else apply_sinks(*part, sinks.view(num_kv_heads, group, 1))
        return made[:, :, piece.offset : piece.offset + num].permute(2, 0, 1, 3).flatten(1, 2)

    def _cut(self, layout: BatchLayout, window: int | None) -> list[_Piece]:
        pieces = []
        for i in range(layout.num_seqs):
            end, row = int(layout.seq_lens[i]), int(layout.cu_q_lens[i])
            position = end - int(layout.q_lens[i])
            while position < end:
                base = position // BLOCK_ROWS * BLOCK_ROWS
                stop = min(base + BLOCK_ROWS, end)
                num = stop - position
                slots, mask = self._keys(layout.page_table[i], base, position, stop, window)
                pieces.append(_Piece(row, row + num, position - base, slots, mask))
                position, row = stop, row + num
        return pieces

    def _keys(
        self, pages: np.ndarray, base: int, position: int, stop: int, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots and mask of a block's keys. position, stop: of the queries that are there."""
        size, device = self.config.page_size, self.config.device
        first = 0 if window is None else max(0, base - window + 1)
        keys = np.arange(first, base + BLOCK_ROWS)
        # Keys that are not there yet are masked; what stands in for them must be finite, so it is the newest token.
        known = np.minimum(keys, stop - 1)
        slots = pages[known // size].astype(np.int64) * size + known % size
        rows = np.arange(base, base + BLOCK_ROWS)[:, None]
        # Rows that are not there see what the first query sees: no row may be without any key.
        seen_from = np.where((rows >= position) & (rows < stop), rows, position)
        hidden = keys > seen_from
        if window is not None:
            hidden |= keys <= seen_from - window
        mask = torch.zeros(hidden.shape, dtype=self.config.dtype, device=device)
        mask.masked_fill_(torch.from_numpy(hidden).to(device), float("-inf"))
        return torch.from_numpy(slots).to(device), mask
