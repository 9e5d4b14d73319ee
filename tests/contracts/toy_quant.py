"""A small quantization method to try the suite on: eight bits, a scale for every 32 inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import ConfigError, WeightError
from core.interfaces.quant import LinearMethod, LinearPart, LinearShape, QuantMethod
from core.layers.module import check_tensor, empty_parameter
from core.layers.skip import skips
from core.layers.unquantized import UnquantizedLinear, copy_rows

GROUP = 32
METHOD = "toy8"


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [N, K] -> (int8 [N, K], float32 scales [N, K / 32])."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (groups / scales).round().to(torch.int8).flatten(1), scales.squeeze(-1)


class ToyLinear(LinearMethod):
    def __init__(self, stored: bool) -> None:
        self.stored = stored

    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        self.check_cut(shape)
        if shape.in_features % GROUP or shape.in_offset % GROUP:
            raise ConfigError(
                f"{shape.path}: {shape.in_features} inputs from {shape.in_offset} on are not whole groups of {GROUP}",
                field="engine.tensor_parallel_size",
                hint="use fewer ranks, or an unquantized checkpoint",
            )
        rows, columns = shape.out_features, shape.in_features
        module.register_parameter("weight", empty_parameter(rows, columns, dtype=torch.int8, device=device))
        module.register_parameter("scale", empty_parameter(rows, columns // GROUP, dtype=torch.float32, device=device))
        bias = empty_parameter(rows, dtype=dtype, device=device) if shape.bias else None
        module.register_parameter("bias", bias)

    def check_cut(self, shape: LinearShape) -> None:
        """For mutants."""

    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        suffixes = ["weight", *(["scale"] if self.stored else []), *(["bias"] if shape.bias else [])]
        return {(suffix, part.name) for suffix in suffixes for part in shape.parts}

    def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        place = next((p for p in shape.parts if p.name == part), None)
        if place is None or (suffix, part) not in self.expected(shape):
            raise WeightError(f"{shape.path} has no {suffix} for part {part!r}")
        if suffix == "bias":
            check_tensor(tensor, (place.full_out_features,))
            copy_rows(module.bias.data, place, tensor)
        elif not self.stored:
            check_tensor(tensor, (place.full_out_features, shape.full_in_features))
            weight, scale = pack(tensor.narrow(1, shape.in_offset, shape.in_features))
            self.keep(module, place, weight, scale)
        else:
            width = GROUP if suffix == "scale" else 1
            wanted = (place.full_out_features, shape.full_in_features // width)
            dtype = torch.float32 if suffix == "scale" else torch.int8
            if tuple(tensor.shape) != wanted or tensor.dtype != dtype:
                raise WeightError(f"{suffix} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(wanted)}")
            columns = tensor.narrow(1, shape.in_offset // width, shape.in_features // width)
            self.copy(module.scale.data if suffix == "scale" else module.weight.data, place, columns)

    def keep(self, module: Any, place: LinearPart, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.copy(module.weight.data, place, weight)
        self.copy(module.scale.data, place, scale)

    def copy(self, target: torch.Tensor, place: LinearPart, tensor: torch.Tensor) -> None:
        copy_rows(target, place, tensor)

    def unpacked(self, module: Any, dtype: torch.dtype) -> torch.Tensor:
        return (module.weight.float().unflatten(1, (-1, GROUP)) * module.scale.unsqueeze(-1)).flatten(1).to(dtype)

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.unpacked(module, x.dtype), module.bias)

    def dense(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return self.unpacked(module, dtype)


class Toy(QuantMethod):
    """Skips what `skip` names, in the checkpoint's configuration or the settings. None for experts."""

    linear_method: type[ToyLinear] = ToyLinear

    @classmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        return hf_quant_config is not None and hf_quant_config.get("quant_method") == METHOD

    def skipped(self, path: str, sources: Sequence[str]) -> bool:
        entries = (self.config if self.config is not None else self.ctx.settings).get("skip", ())
        return skips(entries, path, sources, field="skip")

    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        return UnquantizedLinear() if self.skipped(path, sources) else self.linear_method(self.config is not None)
