"""The gated feed-forward layer."""

from __future__ import annotations

from functools import partial

import torch

from core.interfaces.build import BuildContext
from core.layers.config import ACTIVATIONS
from core.layers.linear import MergedLinear, RowLinear
from core.layers.module import Layer, after_norm
from core.layers.norm import RmsNorm


class GatedMlp(Layer):
    """down(act(gate(x)) * up(x)), gate and up as one matrix. x [T, hidden_size] -> [T, hidden_size].
    `activation`: a key of `core.layers.config.ACTIVATIONS`. reduce: as in RowLinear. stacked: the checkpoint has gate
    and up in one tensor, gate first (see MergedLinear).
    """

    def __init__(
        self,
        path: str,
        hidden_size: int,
        intermediate_size: int,
        ctx: BuildContext,
        *,
        bias: bool = False,
        activation: str = "silu",
        reduce: bool = True,
        stacked: bool = False,
    ) -> None:
        super().__init__()
        name, approximate = ACTIVATIONS[activation]
        op = ctx.ops[name]
        self.act = op if approximate is None else partial(op, approximate=approximate)
        self.activation = {None: "silu", "none": "gelu", "tanh": "gelu_tanh"}[approximate]  # in `fused_linear`
        parts = {"gate": intermediate_size, "up": intermediate_size}
        self.gate_up_proj = ctx.layer(MergedLinear)(
            f"{path}.gate_up_proj", hidden_size, parts, ctx, bias=bias, stacked=stacked
        )
        self.down_proj = ctx.layer(RowLinear)(
            f"{path}.down_proj", intermediate_size, hidden_size, ctx, bias=bias, reduce=reduce
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused = self.gate_up_proj.fused
        if fused is None:
            return self.down_proj(self.act(self.gate_up_proj(x)))
        return self.down_proj(fused(x, activation=self.activation)[0])

    def after_norm(
        self, norm: RmsNorm, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fused = self.gate_up_proj.fused
        if fused is None:
            return after_norm(self, norm, x, residual)
        y, total, _ = fused(
            x, residual=residual, norm_weight=norm.kernel_weight, eps=norm.eps, activation=self.activation
        )
        assert total is not None
        return self.down_proj(y), total
