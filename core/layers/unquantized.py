"""Unquantized: weights in the compute dtype, as they stand in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.moe import ExpertWeights
from core.interfaces.quant import (
    ExpertSlot,
    ExpertsMethod,
    ExpertsShape,
    FusedLinear,
    LinearMethod,
    LinearPart,
    LinearShape,
    QuantMethod,
)
from core.layers.module import NO_EXPERT, check_tensor, empty_parameter
from core.ops import reference
from core.ops.bind import bind

STACKED = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


class UnquantizedLinear(LinearMethod):
    """weight [out_features, in_features] and bias [out_features] in the compute dtype.

    `finish` lets the device lay the weight out as its `linear` operation likes best (operation `pack_linear_weight`)
    and drops the plain copy if that made another.
    """

    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        weight = empty_parameter(shape.out_features, shape.in_features, dtype=dtype, device=device)
        module.register_parameter("weight", weight)
        bias = empty_parameter(shape.out_features, dtype=dtype, device=device) if shape.bias else None
        module.register_parameter("bias", bias)

    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        suffixes = ("weight", "bias") if shape.bias else ("weight",)
        return {(suffix, part.name) for suffix in suffixes for part in shape.parts}

    def load(self, module: nn.Module, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        place = next((p for p in shape.parts if p.name == part), None)
        target = getattr(module, suffix, None) if suffix in ("weight", "bias") else None
        if place is None or target is None:
            raise WeightError(f"{shape.path} has no {suffix} for part {part!r}")
        columns = (shape.full_in_features,) if suffix == "weight" else ()
        check_tensor(tensor, (place.full_out_features, *columns))
        if suffix == "weight" and shape.in_features != shape.full_in_features:
            tensor = tensor.narrow(1, shape.in_offset, shape.in_features)
        copy_rows(target.data, place, tensor)

    def finish(self, module: Any, shape: LinearShape) -> None:
        weight = module.weight.data
        packed = module.ops["pack_linear_weight"](weight)
        if packed is not weight:
            module.register_parameter("weight", None)
        # Plain attributes: a step must not go through nn.Module's parameter look-up.
        module.__dict__["kernel_weight"] = packed
        module.__dict__["kernel_bias"] = bias = module.bias.data if shape.bias else None
        op = module.ops["linear"]
        kernel = bind(op, op, weight=packed, bias=bias)
        module.__dict__["kernel"] = kernel
        module.__dict__["kernel_rest"] = (packed, bias) if kernel is op else ()

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return module.kernel(x, *module.kernel_rest)

    def fused(self, module: Any, shape: LinearShape) -> FusedLinear | None:
        op = module.ops["fused_linear"]
        if op is reference.fused_linear:
            return None
        given = {"weight": module.kernel_weight, "bias": module.kernel_bias}
        return bind(op, partial(op, **given), **given)

    def dense(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if module.weight is None:  # packed, so only its products are known
            return super().dense(module, shape, dtype, device)
        weight: torch.Tensor = module.weight.data
        return weight.to(device=device, dtype=dtype)


def copy_rows(target: torch.Tensor, place: LinearPart, tensor: torch.Tensor) -> None:
    """Copy this rank's rows of a checkpoint tensor into its place; rows past the checkpoint's end become zero (a
    vocabulary that does not divide by the number of ranks)."""
    rows = max(0, min(place.out_features, place.full_out_features - place.shard_offset))
    part = target.narrow(0, place.offset, place.out_features)
    if rows:
        part[:rows].copy_(tensor.narrow(0, place.shard_offset, rows))
    if rows < place.out_features:
        part[rows:].zero_()


class UnquantizedExperts(ExpertsMethod):
    """gate_up [E, 2I, H] (gate rows first) and down [E, H, I] in the compute dtype."""

    def create(self, module: nn.Module, shape: ExpertsShape, dtype: torch.dtype, device: torch.device) -> None:
        num, local, hidden = shape.num_experts, shape.intermediate_size, shape.hidden_size
        module.register_parameter("gate_up", empty_parameter(num, 2 * local, hidden, dtype=dtype, device=device))
        module.register_parameter("down", empty_parameter(num, hidden, local, dtype=dtype, device=device))

    def expected(self, shape: ExpertsShape) -> set[ExpertSlot]:
        return {("weight", part, e) for part in ("gate", "up", "down") for e in range(shape.num_experts)}

    def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> set[ExpertSlot]:
        parts = STACKED.get(suffix)
        if parts is None or part or expert != NO_EXPERT:
            return {(suffix, part, expert)}
        return {("weight", name, e) for name in parts for e in range(shape.num_experts)}

    def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: torch.Tensor) -> None:
        full, local, first = shape.full_intermediate_size, shape.intermediate_size, shape.intermediate_offset
        gate_up, down = module.gate_up.data, module.down.data
        if suffix == "gate_up_proj":
            check_tensor(tensor, (shape.num_experts, 2 * full, shape.hidden_size))
            gate_up[:, :local].copy_(tensor.narrow(1, first, local))
            gate_up[:, local:].copy_(tensor.narrow(1, full + first, local))
        elif suffix == "down_proj":
            check_tensor(tensor, (shape.num_experts, shape.hidden_size, full))
            down.copy_(tensor.narrow(2, first, local))
        elif expert == NO_EXPERT:
            raise WeightError(f"{shape.path}: {suffix} of part {part!r} names no expert")
        elif part == "down":
            check_tensor(tensor, (shape.hidden_size, full))
            down[expert].copy_(tensor.narrow(1, first, local))
        else:
            check_tensor(tensor, (full, shape.hidden_size))
            offset = 0 if part == "gate" else local
            gate_up[expert].narrow(0, offset, local).copy_(tensor.narrow(0, first, local))

    def finish(self, module: Any, shape: ExpertsShape) -> ExpertWeights:
        return ExpertWeights(module.gate_up.data, module.down.data, activation=shape.activation)


class Unquantized(QuantMethod):
    """Checkpoints without a quantization_config."""

    batch_invariant: ClassVar[bool] = True

    @classmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        return hf_quant_config is None

    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        return UnquantizedLinear()

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        return UnquantizedExperts()
