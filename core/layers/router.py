"""Choosing experts: the router's weights and the operation that turns its logits into choices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.errors import WeightError
from core.layers.linear import ReplicatedLinear
from core.layers.module import NO_EXPERT, Slot, WeightModule, check_tensor, empty_parameter
from core.layers.router_config import RouterSpec

BIAS = "e_score_correction_bias"  # suffix in checkpoints

Route = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Float32Router(WeightModule):
    """x [T, hidden_size] -> logits [T, num_experts] float32, from a float32 weight that every rank holds whole.
    `bias` [num_experts] float32 is the correction bias, or None."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    linear: Callable[..., torch.Tensor]

    def __init__(self, path: str, hidden_size: int, spec: RouterSpec, ctx: BuildContext) -> None:
        super().__init__()
        self.path = path
        num = spec.num_experts
        self.weight = empty_parameter(num, hidden_size, dtype=torch.float32, device=ctx.device)
        bias = empty_parameter(num, dtype=torch.float32, device=ctx.device) if spec.correction_bias else None
        self.register_parameter("bias", bias)
        self.linear = ctx.ops["linear"]
        self.pack = ctx.ops["pack_linear_weight"]
        self.kernel_weight: Any = None

    def expected(self) -> set[Slot]:
        suffixes = ("weight", BIAS) if self.bias is not None else ("weight",)
        return {(suffix, "", NO_EXPERT) for suffix in suffixes}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        target = {"weight": self.weight, BIAS: self.bias}.get(suffix)
        if target is None or part or expert is not None:
            raise WeightError(f"{self.path} has no {suffix} {part}")
        check_tensor(tensor, tuple(target.shape))
        target.data.copy_(tensor)

    def finish(self) -> None:
        self.kernel_weight = self.pack(self.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.float(), self.kernel_weight)


def make_router(path: str, hidden_size: int, spec: RouterSpec, ctx: BuildContext) -> tuple[WeightModule, Route]:
    """The module that gives the logits, and what turns them into (weights [T, K] float32, ids [T, K] int64)."""
    if not spec.float32:
        if spec.correction_bias:
            raise AssertionError("a correction bias goes with a float32 router")
        gate: WeightModule = ctx.layer(ReplicatedLinear)(path, hidden_size, spec.num_experts, ctx, bias=False)
        bias = None
    else:
        gate = ctx.layer(Float32Router)(path, hidden_size, spec, ctx)
        bias = None if gate.bias is None else gate.bias.data
    if spec.plain:
        return gate, partial(ctx.ops["topk_softmax"], k=spec.top_k, renormalize=spec.renormalize)
    route = partial(
        ctx.ops["route_topk"],
        bias=bias,
        k=spec.top_k,
        scoring=spec.scoring,
        renormalize=spec.renormalize,
        num_groups=spec.num_groups,
        topk_groups=spec.topk_groups,
        group_score=spec.group_score,
        scale=spec.scale,
    )
    return gate, route
