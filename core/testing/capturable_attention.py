"""CapturableAttention: the slow reference, able to run in a recorded step."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from core.interfaces.attention import AttentionCapabilities
from core.testing.dense_attention import DenseAttention


class CapturableAttention(DenseAttention):
    """Recorded steps attend to every column of the page table under a mask of the lengths that are on the device, so
    that launches depend on the number of rows alone; other steps go the reference's way."""

    capabilities: ClassVar[AttentionCapabilities] = replace(
        DenseAttention.capabilities, graph=True, softcap=False, sinks=False
    )

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        layout = self._layout
        if layout is None or not layout.captured:
            return super().run(q, k, v, layer, kv, sinks)
        assert layout.device_page_table is not None
        assert layout.device_seq_lens is not None
        keys, values = kv
        if k is not None and v is not None:
            slots = layout.slot_mapping.long()
            keys.index_copy_(0, slots, k.to(keys.dtype))
            values.index_copy_(0, slots, v.to(values.dtype))
        spec, size = self.config.layers[layer], layout.page_size
        pages = layout.device_page_table.long()
        index = (pages[:, :, None] * size + torch.arange(size, device=q.device)).flatten(1)  # [N, L]
        position, lens = torch.arange(index.shape[1], device=q.device), layout.device_seq_lens[:, None]
        visible = position < lens
        if spec.window is not None:
            visible = visible & (position >= lens - spec.window)
        groups = q.shape[1] // keys.shape[1]
        hidden = ~visible[:, :, None, None]
        dtype = torch.promote_types(q.dtype, torch.float32)
        seen_k = keys[index].masked_fill(hidden, 0).to(dtype).repeat_interleave(groups, dim=2)  # [N, L, H, D]
        seen_v = values[index].masked_fill(hidden, 0).to(dtype).repeat_interleave(groups, dim=2)
        scores = torch.einsum("nhd,nlhd->nhl", q.to(dtype), seen_k) * spec.scale
        weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
        return torch.einsum("nhl,nlhd->nhd", weights, seen_v).to(q.dtype)
