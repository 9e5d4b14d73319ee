"""DenseAttention: attention written down as its definition. Slow, one sequence at a time, any device.

For tests, and for authors of attention plugins to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig, MlaWeights
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, StateKind


class DenseAttention(AttentionBackend):
    """Buffers of a layer: K [num_pages * page_size, num_kv_heads, head_dim] and V with v_head_dim (of latents, the
    latent and the rope key), filled with NaN, so that reading a token that was never written shows."""

    capabilities: ClassVar[AttentionCapabilities] = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW, StateKind.MLA_LATENT}),
        softcap=True,
        sinks=True,
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext | None = None) -> None:
        super().__init__(config, ctx or PluginContext())
        self._layout: BatchLayout | None = None

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads are not a multiple of {config.num_kv_heads} KV heads"
        return None

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config
        tokens = config.num_pages * config.page_size

        def buffer(width: int) -> torch.Tensor:
            shape = (tokens, config.num_kv_heads, width)
            return torch.full(shape, float("nan"), dtype=config.dtype, device=config.device)

        def widths(spec: AttentionSpec) -> tuple[int, int]:
            return (spec.latent_dim, spec.rope_dim) if spec.latent_dim else (spec.head_dim, spec.v_head_dim)

        return {layer: tuple(buffer(width) for width in widths(spec)) for layer, spec in config.layers.items()}

    def plan(self, layout: BatchLayout) -> None:
        self._layout = layout

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
        if k is not None and v is not None:
            keys[self.layout.slot_mapping] = k.to(keys.dtype)
            values[self.layout.slot_mapping] = v.to(values.dtype)
        spec = self.config.layers[layer]
        out = q.new_zeros(q.shape[0], q.shape[1], spec.v_head_dim)
        for rows, slots, visible in self.sequences(spec):
            out[rows] = attend(q[rows], keys[slots], values[slots], visible, spec, sinks)
        return out

    def run_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        layer: int,
        kv: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        latents, ropes = kv
        latents[self.layout.slot_mapping] = latent[:, None].to(latents.dtype)
        ropes[self.layout.slot_mapping] = k_rope[:, None].to(ropes.dtype)
        spec = self.config.layers[layer]
        out = q_nope.new_zeros(*q_nope.shape[:2], spec.v_head_dim)
        wide = torch.promote_types(q_nope.dtype, torch.float32)
        for rows, slots, visible in self.sequences(spec):
            # Weights absorbed: the latent is both key and value, and all heads share it.
            query = torch.einsum("mhn,hnr->mhr", q_nope[rows].to(wide), weights.key.to(wide))
            query = torch.cat((query, q_rope[rows].to(wide)), -1)
            key = torch.cat((latents[slots], ropes[slots]), -1).to(wide)
            seen = attend(query, key, latents[slots].to(wide), visible, spec)
            out[rows] = torch.einsum("mhr,hvr->mhv", seen, weights.value.to(wide)).to(out.dtype)
        return out

    @property
    def layout(self) -> BatchLayout:
        if self._layout is None:
            raise RuntimeError("run before plan")
        return self._layout

    def sequences(self, spec: AttentionSpec) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Of each sequence its token rows, the KV slots from the oldest token seen to the newest, and visible [M, L]
        bool: which of those each row sees."""
        layout, device = self.layout, self.config.device
        for row in range(layout.num_seqs):
            start, end = int(layout.cu_q_lens[row]), int(layout.cu_q_lens[row + 1])
            if start == end:
                continue
            seq_len = int(layout.seq_lens[row])
            first = seq_len - (end - start)  # position of the first new token
            oldest = 0 if spec.window is None else max(0, first - spec.window + 1)
            seen = torch.arange(oldest, seq_len)
            pages = torch.as_tensor(layout.page_table[row].astype("int64"))
            slots = pages[seen // layout.page_size] * layout.page_size + seen % layout.page_size
            positions = torch.arange(first, seq_len)
            visible = seen[None] <= positions[:, None]
            if spec.window is not None:
                visible &= seen[None] > positions[:, None] - spec.window
            yield slice(start, end), slots.to(device), visible.to(device)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    spec: AttentionSpec,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention of one sequence, in float32 (float64 if q is).

    q [Q, H, D], k [K, Hkv, D], v [K, Hkv, Dv], visible [Q, K] bool, sinks [H] or None; returns [Q, H, Dv] like q.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    k = k.to(dtype).repeat_interleave(groups, dim=1)
    v = v.to(dtype).repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.to(dtype), k) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        extra = sinks.to(dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.softmax(torch.cat((scores, extra), dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
