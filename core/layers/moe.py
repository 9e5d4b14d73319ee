"""Mixture of experts: the routed layer, its expert weights, and the plain-PyTorch runner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from core.interfaces.build import BuildContext
from core.interfaces.errors import ConfigError
from core.interfaces.moe import ExpertWeights, MoeRunner
from core.interfaces.quant import ExpertsMethod, ExpertsShape
from core.layers.config import ACTIVATIONS
from core.layers.linear import shard
from core.layers.mlp import GatedMlp
from core.layers.module import NO_EXPERT, Layer, Slot, WeightModule, after_norm
from core.layers.norm import RmsNorm
from core.layers.router import make_router
from core.layers.router_config import RouterSpec
from core.ops import reference

# Below this many gathered weight elements, two batched products beat a loop over experts (a copy of the weights
# costs less than the calls it saves).
GATHER_ELEMENTS = 1 << 18


class TorchNativeMoe(MoeRunner):
    """Experts in plain PyTorch, on any device; the reference. Sums over experts in float32."""

    def run(
        self, x: torch.Tensor, weights: ExpertWeights, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        gate_up, down = weights.gate_up, weights.down
        elements = topk_ids.numel() * (gate_up.shape[1] * gate_up.shape[2] + down.shape[1] * down.shape[2])
        run = self._gathered if elements <= GATHER_ELEMENTS else self._looped
        return run(x, weights, topk_ids, topk_weights)

    @staticmethod
    def _gathered(x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        num_tokens, top_k = ids.shape
        flat = ids.reshape(-1)
        rows = x.repeat_interleave(top_k, dim=0).unsqueeze(-1)  # [T*K, H, 1]
        gate_up = torch.bmm(weights.gate_up[flat], rows).squeeze(-1)
        hidden = gated(gate_up, weights.activation)
        y = torch.bmm(weights.down[flat], hidden.unsqueeze(-1)).view(num_tokens, top_k, x.shape[1])
        return torch.bmm(scales.unsqueeze(1), y.float()).squeeze(1).to(x.dtype)

    @staticmethod
    def _looped(x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
            return F.linear(gated(F.linear(rows, weights.gate_up[expert]), weights.activation), weights.down[expert])

        return loop_experts(x, ids, scales, weights.gate_up.shape[0], run)


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """gate_up [T, 2I] -> act(gate) * up [T, I]."""
    name, approximate = ACTIVATIONS[activation]
    if name == "silu_and_mul":
        return reference.silu_and_mul(gate_up)
    return reference.gelu_and_mul(gate_up, approximate or "none")


def loop_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    scales: torch.Tensor,
    num_experts: int,
    run: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Each chosen expert once, over all of its tokens. run(expert, rows [N, H]) -> [N, H]; the rest as in
    `MoeRunner.run`."""
    top_k = ids.shape[1]
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    tokens = order // top_k
    ordered = scales.reshape(-1)[order].unsqueeze(-1)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(flat.bincount(minlength=num_experts).tolist()):
        if not count:
            continue
        end = start + count
        rows = tokens[start:end]
        out.index_add_(0, rows, run(expert, x[rows]).float() * ordered[start:end])
        start = end
    return out.to(x.dtype)


class Experts(WeightModule):
    """Weights of all experts, stored and computed as the quantization method says. Sharded over the ranks by
    intermediate size. Calling it: x [T, H], topk_ids [T, K] int64, topk_weights [T, K] float32 -> [T, H], this rank's
    part of the sum.

    A checkpoint gives tensors of part "gate", "up" and "down" for each expert, or stacked ones with suffixes
    "gate_up_proj" [E, 2I, H] and "down_proj" [E, H, I].
    """

    def __init__(
        self,
        path: str,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        ctx: BuildContext,
        *,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        local = shard(intermediate_size, ctx.tp, f"{path} intermediate size")
        self.shape = ExpertsShape(
            path, num_experts, hidden_size, local, intermediate_size, ctx.tp.rank * local, activation
        )
        self.ops = ctx.ops
        self.method = ctx.quant.experts(path, ctx.sources(path))
        _check_format(path, self.method, ctx)
        self.method.create(self, self.shape, ctx.dtype, ctx.device)
        self.runner = ctx.moe
        self.weights: ExpertWeights | None = None
        self.compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

    def expected(self) -> set[Slot]:
        return self.method.expected(self.shape)

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        return self.method.covers(self.shape, suffix, part, expert)

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        self.method.load(self, self.shape, suffix, part, NO_EXPERT if expert is None else expert, tensor)

    def finish(self) -> None:
        self.weights = self.method.finish(self, self.shape)
        own = partial(self.method.apply, self)
        self.__dict__["compute"] = own if self.weights is None else self.runner.bind(self.weights)

    def forward(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        return self.compute(x, topk_ids, topk_weights)


def _check_format(path: str, method: ExpertsMethod, ctx: BuildContext) -> None:
    """Raise ConfigError, before anything is loaded, if nobody computes experts as the method stores them."""
    runner = type(ctx.moe)
    if method.format is None or method.format in runner.formats:
        return
    raise ConfigError(
        f"{type(method).__name__} stores the experts at {path} in format {method.format!r}, which the expert runner "
        f"{runner.__name__} does not compute (it does: {', '.join(sorted(runner.formats))})",
        field="engine.moe_backend",
        value=runner.__name__,
        hint="choose another with --moe-backend, or another --quantization",
    )


class MoeLayer(Layer):
    """Router, chosen experts, and experts that every token goes through. x [T, hidden_size] -> [T, hidden_size].

    intermediate_size: of each routed expert. shared_intermediate_size: of the shared experts, which are one gated MLP
    with the sum of their sizes; 0 for none. The sum over ranks is taken once for both.
    """

    def __init__(
        self,
        path: str,
        hidden_size: int,
        intermediate_size: int,
        router: RouterSpec,
        ctx: BuildContext,
        *,
        shared_intermediate_size: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.gate, self.route = make_router(f"{path}.gate", hidden_size, router, ctx)
        self.experts = ctx.layer(Experts)(
            f"{path}.experts", router.num_experts, hidden_size, intermediate_size, ctx, activation=activation
        )
        self.shared_experts: GatedMlp | None = None
        if shared_intermediate_size:
            self.shared_experts = ctx.layer(GatedMlp)(
                f"{path}.shared_experts",
                hidden_size,
                shared_intermediate_size,
                ctx,
                activation=activation,
                reduce=False,
            )
        self.all_reduce = ctx.tp.all_reduce if ctx.tp.size > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._compute(x, self.gate(x))

    def after_norm(
        self, norm: RmsNorm, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fused = getattr(self.gate, "fused", None)
        if fused is None:
            return after_norm(self, norm, x, residual)
        logits, total, normed = fused(
            x, residual=residual, norm_weight=norm.kernel_weight, eps=norm.eps, keep_normed=True
        )
        return self._compute(normed, logits), total

    def _compute(self, x: torch.Tensor, router_logits: torch.Tensor) -> torch.Tensor:
        weights, ids = self.route(router_logits)
        y = self.experts(x, ids, weights)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        return y if self.all_reduce is None else self.all_reduce(y)
