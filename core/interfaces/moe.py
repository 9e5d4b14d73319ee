"""MoeRunner: computes the chosen experts of every token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from core.interfaces.context import PluginContext

if TYPE_CHECKING:
    import torch


class MoeRunner(ABC):
    """Runs experts that are already routed. One instance per engine; stateless between calls."""

    def __init__(self, ctx: PluginContext) -> None:
        self.ctx = ctx

    @abstractmethod
    def run(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted sum of the experts' SwiGLU outputs.

        x [T, H]; gate_up [E, 2I, H] (gate rows first); down [E, H, I]; topk_ids [T, K] int64;
        topk_weights [T, K] float32. Returns [T, H] in x's dtype; sums in float32.
        """
