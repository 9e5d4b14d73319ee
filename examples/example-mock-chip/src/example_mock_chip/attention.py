"""Attention over pages in which the key and the value of a token lie side by side."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind

ALIGNED = 16  # elements: the chip reads and writes rows of whole multiples


def row_width(head_dim: int, v_head_dim: int) -> int:
    """Elements that one head of one token takes, filled up."""
    return -(-(head_dim + v_head_dim) // ALIGNED) * ALIGNED


class PaperAttention(AttentionBackend):
    """One buffer a layer, [num_pages * page_size, num_kv_heads, row_width]: the key, then the value, then filling."""

    capabilities: ClassVar[AttentionCapabilities] = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}),
        dtypes=("float32", "bfloat16"),
        hardware=("paper",),
        slot_dtype="int32",  # the chip's addresses; core builds the slots of a step in this type
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._slots = torch.empty(0, dtype=torch.int64)
        self._rows: list[tuple[int, int, int, torch.Tensor]] = []

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads do not share {config.num_kv_heads} KV heads evenly"
        return None

    @classmethod
    def page_bytes(cls, group: CacheGroupSpec, page_size: int, itemsize: int, tp_size: int) -> int:
        # The filling takes memory too. Core divides the budget by this, so a layout that says too little would end in
        # an out-of-memory error long after the start.
        heads = max(1, group.num_kv_heads // tp_size)
        return len(group.layers) * page_size * heads * row_width(group.head_dim, group.v_head_dim) * itemsize

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config
        tokens = config.num_pages * config.page_size
        return {
            layer: (
                torch.empty(  # not zeroed: nothing is read that was not written
                    tokens, config.num_kv_heads, row_width(spec.head_dim, spec.v_head_dim),
                    dtype=config.dtype, device=config.device,
                ),
            )
            for layer, spec in config.layers.items()
        }  # fmt: skip

    def plan(self, layout: BatchLayout) -> None:
        self._slots = layout.slot_mapping.long()
        self._rows = []
        for i in range(layout.num_seqs):
            first, end, length = int(layout.cu_q_lens[i]), int(layout.cu_q_lens[i + 1]), int(layout.seq_lens[i])
            if end > first:
                at = np.arange(length)
                pages = layout.page_table[i, at // layout.page_size].astype(np.int64)
                slots = torch.from_numpy(pages * layout.page_size + at % layout.page_size)
                self._rows.append((first, end, length, slots.to(self._slots.device)))

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        (rows,) = kv
        spec = self.config.layers[layer]
        if k is not None and v is not None:
            num = len(self._slots)
            rows[self._slots, :, : spec.head_dim] = k[:num].to(rows.dtype)
            rows[self._slots, :, spec.head_dim : spec.head_dim + spec.v_head_dim] = v[:num].to(rows.dtype)
        out = q.new_zeros(q.shape[0], q.shape[1], spec.v_head_dim)
        for first, end, length, slots in self._rows:
            out[first:end] = _attend(q[first:end], rows, slots, length, spec)
        return out


def _attend(q: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, length: int, spec: AttentionSpec) -> torch.Tensor:
    """q [Q, H, D] of the sequence's last Q tokens -> [Q, H, Dv]. Sums in float32."""
    start = length - len(q)
    oldest = 0 if spec.window is None else max(0, start - spec.window + 1)
    found = rows[slots[oldest:]].float().transpose(0, 1)  # [KV, keys, width]; keys that no query sees stay unread
    keys, values = found[..., : spec.head_dim], found[..., spec.head_dim : spec.head_dim + spec.v_head_dim]
    grouped = q.float().view(len(q), keys.shape[0], -1, q.shape[2]).permute(1, 2, 0, 3)  # [KV, G, Q, D]
    scores = grouped @ keys.unsqueeze(1).transpose(-1, -2) * spec.scale
    own = torch.arange(start, length, device=q.device)[:, None]
    seen = torch.arange(oldest, length, device=q.device)
    hidden = seen > own
    if spec.window is not None:
        hidden |= seen <= own - spec.window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ values.unsqueeze(1)).permute(2, 0, 1, 3).reshape(len(q), q.shape[1], -1).to(q.dtype)
