"""Mixture of experts: the routed layer, its expert weights, and the plain-PyTorch runner."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from core.interfaces.build import BuildContext
from core.interfaces.errors import WeightError
from core.interfaces.moe import MoeRunner
from core.layers.linear import ReplicatedLinear, shard
from core.layers.module import NO_EXPERT, Layer, Slot, WeightModule, check_tensor, empty_parameter

# Below this many gathered weight elements, two batched products beat a loop over experts (a copy of the weights
# costs less than the calls it saves).
GATHER_ELEMENTS = 1 << 18


class TorchNativeMoe(MoeRunner):
    """Experts in plain PyTorch, on any device; the reference. Sums over experts in float32."""

    def run(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
    ) -> torch.Tensor:
        elements = topk_ids.numel() * (gate_up.shape[1] * gate_up.shape[2] + down.shape[1] * down.shape[2])
        run = self._gathered if elements <= GATHER_ELEMENTS else self._looped
        return run(x, gate_up, down, topk_ids, topk_weights)

    @staticmethod
    def _gathered(
        x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        num_tokens, top_k = ids.shape
        flat = ids.reshape(-1)
        rows = x.repeat_interleave(top_k, dim=0).unsqueeze(-1)  # [T*K, H, 1]
        gate, up = torch.bmm(gate_up[flat], rows).squeeze(-1).chunk(2, dim=-1)
        y = torch.bmm(down[flat], (F.silu(gate) * up).unsqueeze(-1)).view(num_tokens, top_k, -1)
        return torch.bmm(weights.unsqueeze(1), y.float()).squeeze(1).to(x.dtype)

    @staticmethod
    def _looped(
        x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        top_k = ids.shape[1]
        flat = ids.reshape(-1)
        order = flat.argsort(stable=True)
        tokens = order // top_k
        scales = weights.reshape(-1)[order].unsqueeze(-1)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        start = 0
        for expert, count in enumerate(flat.bincount(minlength=gate_up.shape[0]).tolist()):
            if not count:
                continue
            end = start + count
            rows = tokens[start:end]
            gate, up = F.linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, down[expert])
            out.index_add_(0, rows, y.float() * scales[start:end])
            start = end
        return out.to(x.dtype)


class Experts(WeightModule):
    """Weights of all experts: gate_up [E, 2I, H] (gate rows first), down [E, H, I]; I is this rank's share.

    A checkpoint gives either "weight" of part "gate", "up" and "down" for each expert, or the stacked tensors with
    suffix "gate_up_proj" [E, 2I, H] and "down_proj" [E, H, I].
    """

    def __init__(
        self, path: str, num_experts: int, hidden_size: int, intermediate_size: int, ctx: BuildContext
    ) -> None:
        super().__init__()
        self.path = path
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.full = intermediate_size
        self.local = shard(intermediate_size, ctx.tp, f"{path} intermediate size")
        self.first = ctx.tp.rank * self.local
        dtype, device = ctx.dtype, ctx.device
        self.gate_up = empty_parameter(num_experts, 2 * self.local, hidden_size, dtype=dtype, device=device)
        self.down = empty_parameter(num_experts, hidden_size, self.local, dtype=dtype, device=device)

    def expected(self) -> set[Slot]:
        return {("weight", part, e) for part in ("gate", "up", "down") for e in range(self.num_experts)}

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        parts = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}.get(suffix)
        if parts is None or part or expert != NO_EXPERT:
            return {(suffix, part, expert)}
        return {("weight", name, e) for name in parts for e in range(self.num_experts)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        if suffix == "gate_up_proj":
            check_tensor(tensor, (self.num_experts, 2 * self.full, self.hidden_size))
            self._rows("gate", slice(None)).copy_(tensor.narrow(1, self.first, self.local))
            self._rows("up", slice(None)).copy_(tensor.narrow(1, self.full + self.first, self.local))
        elif suffix == "down_proj":
            check_tensor(tensor, (self.num_experts, self.hidden_size, self.full))
            self.down.data.copy_(tensor.narrow(2, self.first, self.local))
        elif expert is None:
            raise WeightError(f"{self.path}: {suffix} of part {part!r} names no expert")
        elif part == "down":
            check_tensor(tensor, (self.hidden_size, self.full))
            self.down.data[expert].copy_(tensor.narrow(1, self.first, self.local))
        else:
            check_tensor(tensor, (self.full, self.hidden_size))
            self._rows(part, expert).copy_(tensor.narrow(0, self.first, self.local))

    def _rows(self, part: str, expert: int | slice) -> torch.Tensor:
        offset = 0 if part == "gate" else self.local
        return self.gate_up.data.narrow(1, offset, self.local)[expert]


class MoeLayer(Layer):
    """Router, top-k, experts. x [T, hidden_size] -> [T, hidden_size].

    renormalize: whether the top-k probabilities are scaled to sum to one.
    """

    def __init__(
        self,
        path: str,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        ctx: BuildContext,
        *,
        renormalize: bool,
    ) -> None:
        super().__init__()
        self.gate = ReplicatedLinear(f"{path}.gate", hidden_size, num_experts, ctx, bias=False)
        self.experts = Experts(f"{path}.experts", num_experts, hidden_size, intermediate_size, ctx)
        self.top_k = top_k
        self.renormalize = renormalize
        self.route = ctx.ops["topk_softmax"]
        self.run = ctx.moe.run
        self.all_reduce = ctx.tp.all_reduce if ctx.tp.size > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = self.route(self.gate(x), self.top_k, self.renormalize)
        y = self.run(x, self.experts.gate_up, self.experts.down, ids, weights)
        return y if self.all_reduce is None else self.all_reduce(y)
