"""Experts of a layer: a group of gate and up, and one of down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.moe import PLAIN, ExpertWeights, MoeRunner
from core.interfaces.quant import ExpertSlot, ExpertsMethod, ExpertsShape
from core.layers.module import NO_EXPERT, check_tensor
from core.layers.moe import gated, loop_experts
from core.layers.unquantized import STACKED
from plugin_bitsandbytes.config import INT8, Format
from plugin_bitsandbytes.cut import Cut
from plugin_bitsandbytes.groups import Group, parameter
from plugin_bitsandbytes.linear import group_class, left_out, place

PARTS = ("gate", "up", "down")


class QuantizedExperts(ExpertsMethod):
    """Computes the experts itself, each chosen one over its tokens. Experts that a checkpoint holds unquantized, as
    transformers 5 writes them, go to the MoeRunner as plain ones.

    names: the checkpoint module of each part, with "{expert}" for its number.
    """

    format = None

    def __init__(self, format_: Format, names: Mapping[str, str]) -> None:
        self.quantization = format_
        self.names = names

    def create(self, module: nn.Module, shape: ExpertsShape, dtype: torch.dtype, device: torch.device) -> None:
        full, local, first = shape.full_intermediate_size, shape.intermediate_size, shape.intermediate_offset
        hidden = shape.hidden_size
        cuts = {part: Cut(self.names[part], full, hidden, first, local, 0, hidden) for part in ("gate", "up")}
        cuts["down"] = Cut(self.names["down"], hidden, full, 0, hidden, first, local)
        skipped = {part for part, name in self.names.items() if left_out(self.quantization, name)}
        if self.quantization.prequantized and self.quantization.kind != INT8:
            for part in cuts.keys() - skipped:
                cuts[part].check()
        where = place(self.quantization, dtype, device)
        groups: dict[str, Group] = {}
        for name, parts in (("gate_up", ("gate", "up")), ("down", ("down",))):
            own = {part: cuts[part] for part in parts}
            group = group_class(self.quantization)(
                f"{name}_", own, shape.num_experts, self.quantization, skipped & own.keys(), where
            )
            group.create(module)
            groups |= dict.fromkeys(parts, group)
        module.__dict__["groups"] = groups

    def expected(self, shape: ExpertsShape) -> set[ExpertSlot]:
        return {("weight", part, e) for part in PARTS for e in range(shape.num_experts)}

    def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> set[ExpertSlot]:
        if suffix in STACKED and not part and expert == NO_EXPERT:
            return {("weight", name, e) for name in STACKED[suffix] for e in range(shape.num_experts)}
        known = part in PARTS and 0 <= expert < shape.num_experts
        if known and self.quantization.prequantized and suffix in group_class(self.quantization).suffixes:
            return set()
        return {(suffix, part, expert)}

    def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: torch.Tensor) -> None:
        groups: dict[str, Group] = module.groups
        if suffix in STACKED:
            full = shape.full_intermediate_size
            rows, cols = (2 * full, shape.hidden_size) if suffix == "gate_up_proj" else (shape.hidden_size, full)
            check_tensor(tensor, (shape.num_experts, rows, cols))
            parts = STACKED[suffix]
            for e, matrix in enumerate(tensor):
                for name, piece in zip(parts, matrix.chunk(len(parts)), strict=True):
                    groups[name].load(module, "weight", name, e, piece)
            return
        if part not in groups or not 0 <= expert < shape.num_experts:
            raise WeightError(f"{shape.path}: {suffix} of part {part!r} names no expert")
        groups[part].load(module, suffix, part, expert, tensor)

    def finish(self, module: Any, shape: ExpertsShape) -> ExpertWeights | None:
        groups: dict[str, Group] = module.__dict__.pop("groups")
        gate_up, down = groups["gate"], groups["down"]
        runner: MoeRunner | None = getattr(module, "runner", None)
        plain = runner is None or PLAIN in runner.formats
        if plain and gate_up.all_plain() and down.all_plain():
            return self._plain(module, shape, gate_up, down)
        module.__dict__["gate_up"], module.__dict__["down"] = gate_up.finish(module), down.finish(module)
        for prefix in ("gate_up", "down"):
            for expert, stack in enumerate(getattr(module, prefix)):
                for name, tensor in stack.tensors().items():
                    module.register_parameter(f"{prefix}_{expert}_{name}", parameter(tensor))
        module.__dict__["activation"] = shape.activation
        return None

    @staticmethod
    def _plain(module: nn.Module, shape: ExpertsShape, gate_up: Group, down: Group) -> ExpertWeights:
        experts = range(shape.num_experts)
        for group in (gate_up, down):
            group.drop(module)
        both = torch.stack([torch.cat([gate_up.plain.pop((part, e)) for part in ("gate", "up")]) for e in experts])
        second = torch.stack([down.plain.pop(("down", e)) for e in experts])
        module.register_parameter("gate_up", parameter(both))
        module.register_parameter("down", parameter(second))
        return ExpertWeights(both, second, activation=shape.activation)

    def apply(self, module: Any, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        gate_up, down, activation = module.gate_up, module.down, module.activation

        def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
            return down[expert](gated(gate_up[expert](rows), activation))

        return loop_experts(x, topk_ids, topk_weights, len(down), run)
