"""A whole layer of the chip's own."""

from __future__ import annotations

import torch

from core.layers.mlp import GatedMlp


class PaperMlp(GatedMlp):
    """Core's gated feed-forward layer, computed in strips: the chip's fast memory holds `strip` tokens at a time.

    A subclass keeps what core's layer is for others: names of its parts, loading, sharding and quantization. Only
    `forward` is the chip's."""

    strip = 32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) <= self.strip:
            return super().forward(x)
        return torch.cat([super(PaperMlp, self).forward(part) for part in x.split(self.strip)])
