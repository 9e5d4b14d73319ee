"""A softmax over keys that come in blocks (Milakov & Gimelshein 2018, arXiv:1805.02867)."""

from __future__ import annotations

import torch

from core.interfaces.spec import AttentionSpec


class RunningSoftmax:
    """For queries [KV, G, Q, D]: the largest score so far [KV, G, Q, 1], the sum of exp(score - largest), and the
    values weighted alike. A larger score that comes later scales both down."""

    def __init__(self, queries: torch.Tensor, spec: AttentionSpec, sinks: torch.Tensor | None) -> None:
        self.queries = queries * spec.scale
        self.softcap = spec.softcap
        shape = (*queries.shape[:-1], 1)
        if sinks is None:
            self.largest = queries.new_full(shape, float("-inf"))
            self.total = queries.new_zeros(shape)
        else:
            # A sink is a score without a value: as if it had been the first block.
            self.largest = sinks.to(queries.dtype).view(*queries.shape[:2], 1, 1).expand(shape)
            self.total = queries.new_ones(shape)
        self.weighted = queries.new_zeros(*queries.shape[:-1], spec.v_head_dim)

    def add(self, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor) -> None:
        """keys [KV, K, D], values [KV, K, Dv], visible [Q, K]."""
        scores = self.queries @ keys.unsqueeze(1).transpose(-1, -2)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores = scores.masked_fill(~visible, float("-inf"))
        largest = torch.maximum(self.largest, scores.amax(-1, keepdim=True))
        # A query that has seen nothing yet has no largest score; any finite number does in its place.
        base = largest.masked_fill(largest.isinf(), 0.0)
        weights = torch.exp(scores - base)
        shrink = torch.exp(self.largest - base)
        self.total = self.total * shrink + weights.sum(-1, keepdim=True)
        self.weighted = self.weighted * shrink + weights @ values.unsqueeze(1)
        self.largest = largest

    def result(self) -> torch.Tensor:
        """[KV, G, Q, Dv]."""
        return self.weighted / self.total
