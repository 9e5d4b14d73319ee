"""Linear layers: one group whose parts are the layer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.quant import LinearMethod, LinearShape
from core.layers.module import check_tensor, empty_parameter
from core.layers.skip import names_module
from core.layers.unquantized import copy_rows
from plugin_bitsandbytes.config import INT8, Format
from plugin_bitsandbytes.cut import Cut
from plugin_bitsandbytes.devices import can_fuse, check_device
from plugin_bitsandbytes.four_bit import FourBitGroup
from plugin_bitsandbytes.groups import Group, Place, parameter
from plugin_bitsandbytes.int8 import Int8Group

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def group_class(format_: Format) -> type[Group]:
    return Int8Group if format_.kind == INT8 else FourBitGroup


def left_out(format_: Format, name: str) -> bool:
    """Whether the checkpoint module `name` is in the list of skipped ones."""
    return any(names_module(entry, name) for entry in format_.skip)


def place(format_: Format, dtype: torch.dtype, device: torch.device) -> Place:
    """Raises ConfigError if bitsandbytes has no kernels for the device."""
    check_device(device, format_.kind)
    compute = COMPUTE[format_.compute_dtype] if format_.compute_dtype else dtype
    fused = format_.kind != INT8 and format_.fused and can_fuse(device, compute)
    return Place(dtype, device, compute, fused)


class QuantizedLinear(LinearMethod):
    """names: the checkpoint modules that fill the layer, one for each part."""

    def __init__(self, format_: Format, names: Sequence[str]) -> None:
        self.format = format_
        self.names = tuple(names)

    def _name(self, shape: LinearShape, number: int) -> str:
        if len(self.names) == len(shape.parts):
            return self.names[number]
        part = shape.parts[number].name
        return f"{shape.path}.{part}" if part else shape.path

    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        cuts: dict[str, Cut] = {}
        skipped = []
        for number, part in enumerate(shape.parts):
            name = self._name(shape, number)
            cuts[part.name] = cut = Cut(
                name,
                part.full_out_features,
                shape.full_in_features,
                part.shard_offset,
                part.out_features,
                shape.in_offset,
                shape.in_features,
            )
            if left_out(self.format, name):
                skipped.append(part.name)
            elif self.format.prequantized and self.format.kind != INT8:
                cut.check()
        group = group_class(self.format)("", cuts, 1, self.format, skipped, place(self.format, dtype, device))
        group.create(module)
        module.__dict__["group"] = group
        bias = empty_parameter(shape.out_features, dtype=dtype, device=device) if shape.bias else None
        module.register_parameter("bias", bias)

    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        suffixes = ("weight", "bias") if shape.bias else ("weight",)
        return {(suffix, part.name) for suffix in suffixes for part in shape.parts}

    def optional(self, shape: LinearShape) -> set[tuple[str, str]]:
        """What belongs to a packed weight. Whether a weight is packed shows only when it is read: versions of
        transformers differ in what a list of skipped modules means. `finish` misses what is missing."""
        if not self.format.prequantized:
            return set()
        return {(suffix, part.name) for suffix in group_class(self.format).suffixes for part in shape.parts}

    def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        place = next((p for p in shape.parts if p.name == part), None)
        if place is None or (suffix == "bias" and not shape.bias):
            raise WeightError(f"{shape.path} has no {suffix} for part {part!r}")
        if suffix == "bias":
            check_tensor(tensor, (place.full_out_features,))
            copy_rows(module.bias.data, place, tensor)
            return
        module.group.load(module, suffix, part, 0, tensor)

    def load_stacked(self, module: Any, shape: LinearShape, suffix: str, tensor: torch.Tensor) -> None:
        """A projection that the checkpoint has as one module: each part is a cut of it. Raises ConfigError if that
        cuts through 4-bit blocks."""
        if suffix == "bias" or not self.format.prequantized:
            super().load_stacked(module, shape, suffix, tensor)
            return
        module.group.stacked(self.names[0] if len(self.names) == 1 else shape.path)
        for part in shape.parts:
            module.group.load(module, suffix, part.name, 0, tensor)

    def finish(self, module: Any, shape: LinearShape) -> None:
        bias = {}
        if shape.bias:
            bias = {part.name: module.bias.data.narrow(0, part.offset, part.out_features) for part in shape.parts}
        (stack,) = module.group.finish(module, bias)
        del module.__dict__["group"]
        for name, tensor in stack.tensors().items():
            module.register_parameter(name, parameter(tensor))
        module.__dict__["kernel"] = stack if stack.only is None else stack.only

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return module.kernel(x)

    def dense(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return module.kernel.dense(dtype)
