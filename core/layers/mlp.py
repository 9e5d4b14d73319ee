"""The gated feed-forward layer."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.errors import CheckpointError
from core.layers.linear import MergedLinear, RowLinear

# Activation names of config.json -> operation and its approximation.
ACTIVATIONS: dict[str, tuple[str, str | None]] = {
    "silu": ("silu_and_mul", None),
    "swish": ("silu_and_mul", None),
    "gelu": ("gelu_and_mul", "none"),
    "gelu_new": ("gelu_and_mul", "tanh"),
    "gelu_pytorch_tanh": ("gelu_and_mul", "tanh"),
}


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)), gate and up as one matrix. x [T, hidden_size] -> [T, hidden_size].
    Raises CheckpointError for an activation that is not in ACTIVATIONS."""

    def __init__(
        self,
        path: str,
        hidden_size: int,
        intermediate_size: int,
        ctx: BuildContext,
        *,
        bias: bool = False,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise CheckpointError(
                f"config.json: hidden_act = {activation!r} is unknown", hint=f"known: {', '.join(ACTIVATIONS)}"
            )
        name, approximate = ACTIVATIONS[activation]
        op = ctx.ops[name]
        self.act = op if approximate is None else partial(op, approximate=approximate)
        parts = {"gate": intermediate_size, "up": intermediate_size}
        self.gate_up_proj = MergedLinear(f"{path}.gate_up_proj", hidden_size, parts, ctx, bias=bias)
        self.down_proj = RowLinear(f"{path}.down_proj", intermediate_size, hidden_size, ctx, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_up_proj(x)))
