"""Experts in int8, computed here rather than by a runner: `format` is None, so core calls `apply`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.quant import ExpertSlot, ExpertsMethod, ExpertsShape
from core.layers.module import check_tensor
from core.layers.moe import gated, loop_experts
from example_quant.rows import product, quantize

# Layouts in which one tensor holds all experts -> the parts it stacks.
STACKED = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


class Int8Experts(ExpertsMethod):
    """gate_up int8 [E, 2I, H] (gate rows first), down int8 [E, H, I], and a float32 scale for each of their rows."""

    format = None  # what a MoeRunner computes has a name that both agree on; this has none

    def create(self, module: nn.Module, shape: ExpertsShape, dtype: torch.dtype, device: torch.device) -> None:
        num, local, hidden = shape.num_experts, shape.intermediate_size, shape.hidden_size
        for name, rows, columns in (("gate_up", 2 * local, hidden), ("down", hidden, local)):
            weight = torch.zeros(num, rows, columns, dtype=torch.int8, device=device)
            scale = torch.zeros(num, rows, dtype=torch.float32, device=device)
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            module.register_parameter(f"{name}_scale", nn.Parameter(scale, requires_grad=False))

    def expected(self, shape: ExpertsShape) -> set[ExpertSlot]:
        return {("weight", part, e) for part in ("gate", "up", "down") for e in range(shape.num_experts)}

    def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> set[ExpertSlot]:
        if suffix in STACKED and not part and expert < 0:
            return {("weight", name, e) for name in STACKED[suffix] for e in range(shape.num_experts)}
        return {(suffix, part, expert)}

    def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: torch.Tensor) -> None:
        full, hidden = shape.full_intermediate_size, shape.hidden_size
        if suffix == "gate_up_proj":
            check_tensor(tensor, (shape.num_experts, 2 * full, hidden))
            for e in range(shape.num_experts):
                self._fill(module, shape, "gate", e, tensor[e, :full])
                self._fill(module, shape, "up", e, tensor[e, full:])
        elif suffix == "down_proj":
            check_tensor(tensor, (shape.num_experts, hidden, full))
            for e in range(shape.num_experts):
                self._fill(module, shape, "down", e, tensor[e])
        elif suffix != "weight" or expert < 0:
            raise WeightError(f"{shape.path} has no {suffix} for part {part!r} of expert {expert}")
        else:
            check_tensor(tensor, (hidden, full) if part == "down" else (full, hidden))
            self._fill(module, shape, part, expert, tensor)

    def _fill(self, module: Any, shape: ExpertsShape, part: str, expert: int, tensor: torch.Tensor) -> None:
        integers, scale = quantize(tensor)  # whole rows, before this rank's share is cut out; see Int8Linear
        local, first = shape.intermediate_size, shape.intermediate_offset
        if part == "down":
            module.down.data[expert].copy_(integers.narrow(1, first, local))
            module.down_scale.data[expert].copy_(scale)
            return
        offset = 0 if part == "gate" else local
        module.gate_up.data[expert].narrow(0, offset, local).copy_(integers.narrow(0, first, local))
        module.gate_up_scale.data[expert].narrow(0, offset, local).copy_(scale.narrow(0, first, local))

    def finish(self, module: Any, shape: ExpertsShape) -> None:
        # None tells core that there are no weights for a runner.
        for name in ("gate_up", "gate_up_scale", "down", "down_scale"):
            module.__dict__[f"kernel_{name}"] = getattr(module, name).data
        module.__dict__["activation"] = shape.activation

    def apply(self, module: Any, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
            both = product(rows, module.kernel_gate_up[expert], module.kernel_gate_up_scale[expert])
            inner = gated(both, module.activation)
            return product(inner, module.kernel_down[expert], module.kernel_down_scale[expert])

        return loop_experts(x, topk_ids, topk_weights, module.kernel_gate_up.shape[0], run)
