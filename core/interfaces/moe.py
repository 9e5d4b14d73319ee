"""MoeRunner: computes the chosen experts of every token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from core.interfaces.context import PluginContext

if TYPE_CHECKING:
    import torch

PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Weights of all experts of one layer on this rank, after loading.

    gate_up [E, 2I, H] (gate rows first) and down [E, H, I] in format "plain"; other formats state their own layout
    in their package's documentation. format: "plain", or the name of a quantized layout that quantization method and
    runner agree on. scales: further tensors of such a format, by name.
    activation: of the gate, "silu" or another key of `core.layers.config.ACTIVATIONS`.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    format: str = PLAIN
    scales: Mapping[str, torch.Tensor] = field(default_factory=dict)
    activation: str = "silu"


class MoeRunner(ABC):
    """Runs experts that are already routed. One instance per engine; stateless between calls.

    formats: of `ExpertWeights` that it computes. Core refuses to start with a quantization method whose experts need
    another, unless the method computes them itself. batch_invariant: a token's result does not depend on the batch.
    """

    formats: ClassVar[frozenset[str]] = frozenset({PLAIN})
    batch_invariant: ClassVar[bool] = False

    def __init__(self, ctx: PluginContext) -> None:
        self.ctx = ctx

    @abstractmethod
    def run(
        self, x: torch.Tensor, weights: ExpertWeights, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sum of the experts' gated outputs, down(act(gate(x)) * up(x)).

        x [T, H]; topk_ids [T, K] int64; topk_weights [T, K] float32. Returns [T, H] in x's dtype; sums over experts in
        float32.
        """

    def bind(self, weights: ExpertWeights) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """`run` for one layer, (x, topk_ids, topk_weights) -> [T, H]. A layer asks for it once, when its weights are
        final, and keeps it, so that what depends on them alone need not be found in every step."""

        def run(x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
            return self.run(x, weights, topk_ids, topk_weights)

        return run
