"""StreamingAttention: one backend object serves all layers of one cache group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, StateKind
from example_attention.softmax import RunningSoftmax


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence of a step. first, end: its rows of q. start: position of the first of them. pages: its page table,
    on the device."""

    first: int
    end: int
    start: int
    pages: torch.Tensor


class StreamingAttention(AttentionBackend):
    """A layer's buffers are [num_pages, num_kv_heads, page_size, head_dim]: the keys of a head lie together in a page,
    as a kernel that works head by head would want them. Core never looks inside; it only counts bytes."""

    capabilities: ClassVar[AttentionCapabilities] = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}), softcap=True, sinks=True
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._block_pages = -(-ctx.settings.block_tokens // config.page_size)
        self._rows: list[_Row] = []
        self._pages = self._offsets = torch.empty(0, dtype=torch.int64)

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        # Asked before anything is built. What is no matter of capabilities is said here, in words for people.
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads do not share {config.num_kv_heads} KV heads evenly"
        return None

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config

        def buffer(dim: int) -> torch.Tensor:
            shape = (config.num_pages, config.num_kv_heads, config.page_size, dim)
            # Not zeroed: that would write gigabytes at every start, and nothing is read that was not written.
            return torch.empty(shape, dtype=config.dtype, device=config.device)

        return {layer: (buffer(spec.head_dim), buffer(spec.v_head_dim)) for layer, spec in config.layers.items()}

    def plan(self, layout: BatchLayout) -> None:
        # Once a step, for all layers: host arithmetic on the host's arrays, and no reading back from the device. What
        # is kept is ours; the layout itself belongs to core and may be written to again.
        slots = layout.slot_mapping
        self._pages, self._offsets = slots // layout.page_size, slots % layout.page_size
        table = layout.device_page_table
        if table is None:
            table = torch.from_numpy(layout.page_table.astype(np.int64)).to(slots.device)
        self._rows = []
        for i in range(layout.num_seqs):
            first, end = int(layout.cu_q_lens[i]), int(layout.cu_q_lens[i + 1])
            length = int(layout.seq_lens[i])
            if end > first:
                num_pages = -(-length // layout.page_size)
                self._rows.append(_Row(first, end, length - (end - first), table[i, :num_pages].long()))

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        keys, values = kv
        if k is not None and v is not None:  # else a fused operation of the device has stored them
            num = len(self._pages)
            keys[self._pages, :, self._offsets] = k[:num].to(keys.dtype)
            values[self._pages, :, self._offsets] = v[:num].to(values.dtype)
        spec = self.config.layers[layer]
        # Zeros, because rows past the last sequence are padding: nobody reads them, but they must be finite.
        out = q.new_zeros(q.shape[0], q.shape[1], spec.v_head_dim)
        for row in self._rows:
            out[row.first : row.end] = self._attend(q[row.first : row.end], keys, values, row, spec, sinks)
        return out

    def _attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        row: _Row,
        spec: AttentionSpec,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [Q, H, D] of one sequence -> [Q, H, Dv]."""
        num_new, num_heads, _ = q.shape
        num_kv_heads, page_size = keys.shape[1], keys.shape[2]
        # Sums in float32 whatever the pages hold. [Q, H, D] -> [KV, G, Q, D]: G query heads share a KV head.
        wide = torch.promote_types(q.dtype, torch.float32)
        grouped = q.to(wide).view(num_new, num_kv_heads, -1, q.shape[2]).permute(1, 2, 0, 3)
        positions = torch.arange(row.start, row.start + num_new, device=q.device)
        # Pages before the window may have been given to somebody else: they must not even be read.
        oldest = 0 if spec.window is None else max(0, row.start - spec.window + 1)
        softmax = RunningSoftmax(grouped, spec, sinks)
        for block in range(oldest // page_size, len(row.pages), self._block_pages):
            pages = row.pages[block : block + self._block_pages]
            begin = block * page_size
            lo = max(oldest, begin)
            hi = min(row.start + num_new, begin + len(pages) * page_size)
            # [pages, KV, page_size, D] -> [KV, keys, D], cut to what has been written: the rest may hold anything.
            block_keys = keys[pages].transpose(0, 1).flatten(1, 2)[:, lo - begin : hi - begin]
            block_values = values[pages].transpose(0, 1).flatten(1, 2)[:, lo - begin : hi - begin]
            seen = torch.arange(lo, hi, device=q.device)
            visible = seen <= positions[:, None]
            if spec.window is not None:
                visible &= seen > positions[:, None] - spec.window
            softmax.add(block_keys.to(wide), block_values.to(wide), visible)
        result = softmax.result()  # [KV, G, Q, Dv]
        return result.permute(2, 0, 1, 3).reshape(num_new, num_heads, -1).to(q.dtype)
