"""A linear layer in int8: how its tensors are created, loaded and applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.quant import LinearMethod, LinearPart, LinearShape
from core.layers.module import check_tensor
from example_quant.rows import product, quantize


class Int8Linear(LinearMethod):
    """weight int8 [out_features, in_features], weight_scale float32 [out_features], bias in the compute dtype.

    stored: the checkpoint holds integers and scales; otherwise it holds floats, which are quantized as they come.

    Ranks: a row's scale is of the *whole* row of the checkpoint. `load` therefore quantizes before it cuts out this
    rank's columns. Cut first, every rank would find a scale of its own, and the model would answer differently on two
    GPUs than on one.
    """

    def __init__(self, stored: bool) -> None:
        self.stored = stored

    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        rows, columns = shape.out_features, shape.in_features
        weight = torch.zeros(rows, columns, dtype=torch.int8, device=device)
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        scale = torch.zeros(rows, dtype=torch.float32, device=device)
        module.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))
        bias = torch.zeros(rows, dtype=dtype, device=device) if shape.bias else None
        module.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        # Exactly what a checkpoint must give: core lists what is missing and what is left over.
        suffixes = {"weight"} | ({"weight_scale"} if self.stored else set()) | ({"bias"} if shape.bias else set())
        return {(suffix, part.name) for suffix in suffixes for part in shape.parts}

    def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        place = next((p for p in shape.parts if p.name == part), None)
        if place is None or (suffix, part) not in self.expected(shape):
            raise WeightError(f"{shape.path} has no {suffix} for part {part!r}")
        if suffix == "bias":
            check_tensor(tensor, (place.full_out_features,))
            _copy_rows(module.bias.data, place, tensor)
        elif suffix == "weight_scale":
            check_tensor(tensor.flatten(), (place.full_out_features,))
            _copy_rows(module.weight_scale.data, place, tensor.flatten())
        elif self.stored:
            wanted = (place.full_out_features, shape.full_in_features)
            if tensor.dtype != torch.int8 or tuple(tensor.shape) != wanted:
                raise WeightError(f"{tensor.dtype} {list(tensor.shape)}, expected int8 {list(wanted)}")
            _copy_rows(module.weight.data, place, tensor.narrow(1, shape.in_offset, shape.in_features))
        else:
            check_tensor(tensor, (place.full_out_features, shape.full_in_features))
            integers, scale = quantize(tensor)
            _copy_rows(module.weight.data, place, integers.narrow(1, shape.in_offset, shape.in_features))
            _copy_rows(module.weight_scale.data, place, scale)

    def finish(self, module: Any, shape: LinearShape) -> None:
        # Plain attributes: looking parameters up in a module costs a microsecond each, at every layer of every step.
        module.__dict__["kernel_weight"] = module.weight.data
        module.__dict__["kernel_scale"] = module.weight_scale.data
        module.__dict__["kernel_bias"] = module.bias.data if shape.bias else None

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        y = product(x, module.kernel_weight, module.kernel_scale)
        return y if module.kernel_bias is None else y + module.kernel_bias


def _copy_rows(target: torch.Tensor, place: LinearPart, tensor: torch.Tensor) -> None:
    """This rank's rows of a checkpoint tensor into their place. A vocabulary that does not divide by the number of
    ranks ends before the last rank's rows do; those stay zero."""
    rows = max(0, min(place.out_features, place.full_out_features - place.shard_offset))
    part = target.narrow(0, place.offset, place.out_features)
    part[:rows].copy_(tensor.narrow(0, place.shard_offset, rows))
    part[rows:].zero_()
