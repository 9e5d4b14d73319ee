"""Named operations. Names and signatures are those of `core.ops.reference`; what is missing here is core's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from core.interfaces.ops import OpTable


class TurnedWeight:
    """A weight [N, K] as the chip reads it: [K, N], one row after the other."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.turned = weight.detach().t().contiguous()


def pack_linear_weight(weight: torch.Tensor) -> TurnedWeight:
    """Called once, when loading is done. Whatever is returned is only ever handed to `linear` of the same table."""
    return TurnedWeight(weight)


def linear(x: torch.Tensor, weight: TurnedWeight | torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] -> [T, N]."""
    # Layers that fold weights (and tests) may call with a plain weight.
    turned = weight.turned if isinstance(weight, TurnedWeight) else weight.t()
    return x @ turned if bias is None else torch.addmm(bias, x, turned)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2I] -> silu(gate) * up [T, I]. In float32, as the chip's vector unit has it."""
    gate, up = gate_up.float().chunk(2, -1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


class PaperOps(OpTable):
    """The table. `linear` and `pack_linear_weight` belong together, and core insists on both or none."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"linear": linear, "pack_linear_weight": pack_linear_weight, "silu_and_mul": silu_and_mul}
