"""Linear layers with e4m3 weights."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.quant import LinearMethod, LinearPart, LinearShape
from core.layers.module import check_tensor, empty_parameter
from core.layers.unquantized import UnquantizedLinear, copy_rows
from plugin_fp8 import scales
from plugin_fp8.config import BLOCK, TENSOR, Format
from plugin_fp8.fused import Fused
from plugin_fp8.kernels import Scratch
from plugin_fp8.products import Product, Quantized, Weight, product_of


class OnlineLinear(LinearMethod):
    """Loaded as it stands, quantized when all parts are there: one scale a row."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self.plain = UnquantizedLinear()

    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        self.plain.create(module, shape, dtype, device)

    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        return self.plain.expected(shape)

    def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        self.plain.load(module, shape, suffix, part, tensor)

    def finish(self, module: Any, shape: LinearShape) -> None:
        stored, scale = scales.quantize_rows(module.weight.data)
        del module.weight
        keep(module, stored, scale, shape.in_features, None, self.scratch)

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return module.product(x)

    def fused(self, module: Any, shape: LinearShape) -> Fused | None:
        return fused(module)

    def dense(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return module.held.dense(dtype)


def fused(module: Any) -> Fused | None:
    """For products that quantize their inputs on a device."""
    return Fused(module.product, module.ops) if isinstance(module.product, Quantized) else None


def keep(
    module: Any, stored: torch.Tensor, scale: torch.Tensor, group: int, input_scale: torch.Tensor | None,
    scratch: Scratch,
) -> None:  # fmt: skip
    """Bind what a forward pass needs."""
    module.register_parameter("weight", nn.Parameter(stored, requires_grad=False))
    module.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))
    bias = module.bias.data if module.bias is not None else None
    held = Weight(stored, scale, group, input_scale, bias)
    product: Product = product_of(held, module.ops, scratch)
    # Plain attributes: a step must not go through nn.Module's parameter look-up.
    module.__dict__["held"], module.__dict__["product"] = held, product


class CheckpointLinear(LinearMethod):
    """Weights that a checkpoint holds in e4m3, of any of the layouts. A module that it holds unquantized although no
    list says so is taken as it is: lists differ in what they name (a router, an output embedding)."""

    def __init__(self, format_: Format, scratch: Scratch) -> None:
        self.format = format_
        self.scratch = scratch
        self.plain = UnquantizedLinear()

    def group(self, shape: LinearShape) -> int:
        """Columns that share a scale."""
        if self.format.weights != BLOCK:
            return shape.in_features
        return scales.column_group(self.format.block[1], shape.in_offset)

    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        rows, columns = shape.out_features, shape.in_features
        groups = -(-columns // self.group(shape))
        module.register_parameter("weight", empty_parameter(rows, columns, dtype=scales.E4M3, device=device))
        module.register_parameter("weight_scale", empty_parameter(rows, groups, dtype=torch.float32, device=device))
        bias = empty_parameter(rows, dtype=dtype, device=device) if shape.bias else None
        module.register_parameter("bias", bias)
        module.__dict__["state"] = _State(dtype)

    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        return self.plain.expected(shape)

    def optional(self, shape: LinearShape) -> set[tuple[str, str]]:
        """Whether scales are missing shows in `finish`: a module may be unquantized."""
        return {(suffix, part.name) for suffix in self._suffixes() for part in shape.parts}

    def _suffixes(self) -> tuple[str, ...]:
        static = (self.format.input_scale,) if self.format.static else ()
        return (self.format.scale, *static)

    def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        place = next((p for p in shape.parts if p.name == part), None)
        if (
            place is None
            or suffix not in ("weight", "bias", *self._suffixes())
            or (suffix == "bias" and not shape.bias)
        ):
            raise WeightError(f"{shape.path} has no {suffix} for part {part!r}")
        state: _State = module.state
        if suffix == "weight" and tensor.dtype.itemsize > 1:
            with state.lock:
                if state.wide is None:
                    state.wide = torch.empty(module.weight.shape, dtype=state.dtype, device=module.weight.device)
            check_tensor(tensor, (place.full_out_features, shape.full_in_features))
            copy_rows(state.wide, place, tensor.narrow(1, shape.in_offset, shape.in_features))
        elif suffix == "weight":
            check_stored(tensor, (place.full_out_features, shape.full_in_features))
            cut = tensor.narrow(1, shape.in_offset, shape.in_features)
            copy_rows(module.weight.data.view(torch.uint8), place, cut.view(torch.uint8))
        elif suffix == "bias":
            check_tensor(tensor, (place.full_out_features,))
            copy_rows(module.bias.data, place, tensor)
        elif suffix == self.format.scale:
            copy_rows(module.weight_scale.data, place, self._rows(shape, place.full_out_features, tensor))
        elif suffix == self.format.input_scale:
            state.inputs[part] = one_number(tensor)
        state.note(suffix, part, tensor)

    def _rows(self, shape: LinearShape, rows: int, tensor: torch.Tensor) -> torch.Tensor:
        """A checkpoint's scale as one for each of `rows` rows and each of this rank's groups."""
        if self.format.weights == BLOCK:
            return block_rows(tensor, self.format.block, rows, shape)
        number = scales.as_float(tensor).reshape(-1)
        if len(number) not in ((1,) if self.format.weights == TENSOR else (rows,)):
            wanted = "1 number" if self.format.weights == TENSOR else f"{rows} numbers"
            raise WeightError(
                f"shape {list(tensor.shape)}, expected {wanted}: one scale for each {self.format.weights}"
            )
        return number.expand(rows).unsqueeze(1)

    def load_stacked(self, module: Any, shape: LinearShape, suffix: str, tensor: torch.Tensor) -> None:
        """Scales of a whole are dealt out with the rows that they are for."""
        total = sum(part.full_out_features for part in shape.parts)
        if suffix == self.format.input_scale and self.format.static:
            for place in shape.parts:
                self.load(module, shape, suffix, place.name, tensor)
        elif suffix == self.format.scale:
            rows, first = self._rows(shape, total, tensor), 0
            for place in shape.parts:
                piece = rows.narrow(0, first, place.full_out_features)
                first += place.full_out_features
                copy_rows(module.weight_scale.data, place, piece)
                state: _State = module.state
                state.note(suffix, place.name, tensor)
        else:
            super().load_stacked(module, shape, suffix, tensor)

    def finish(self, module: Any, shape: LinearShape) -> None:
        state: _State = module.__dict__.pop("state")
        group = self.group(shape)
        if not state.seen:  # drawn weights: any scale will do
            module.weight_scale.data.fill_(1.0)
        elif state.wide is not None:
            self._finish_plain(module, shape, state, state.wide)
            return
        else:
            self._check_complete(shape, state)
        inputs = None
        if self.format.static:
            # Parts are products of one input; where their scales differ, the largest clamps nothing of any.
            largest = torch.stack(list(state.inputs.values())).amax() if state.inputs else torch.ones(())
            inputs = largest.to(module.weight.device)
        stored, scale = module.weight.data, module.weight_scale.data
        keep(module, stored, scale, group, inputs, self.scratch)

    def _finish_plain(self, module: Any, shape: LinearShape, state: _State, wide: torch.Tensor) -> None:
        quantized = [part.name for part in shape.parts if ("weight", part.name) not in state.plain]
        if quantized:
            raise WeightError(
                f"{shape.path}: part {quantized[0]!r} is quantized and {min(name for _, name in state.plain)!r} is "
                "not, but they are one matrix",
                hint="take a checkpoint that quantizes all of them, or none",
            )
        del module.weight, module.weight_scale
        module.register_parameter("weight", nn.Parameter(wide, requires_grad=False))
        self.plain.finish(module, shape)
        module.__dict__["product"] = lambda x: self.plain.apply(module, x)
        module.__dict__["held"] = None

    def _check_complete(self, shape: LinearShape, state: _State) -> None:
        needed = [self.format.scale, *([self.format.input_scale] if self.format.static else [])]
        for part in shape.parts:
            for suffix in needed:
                if (suffix, part.name) not in state.seen:
                    where = f"{shape.path} part {part.name!r}" if part.name else shape.path
                    raise WeightError(
                        f"{where}: {suffix} is missing",
                        hint="the checkpoint is incomplete, or its quantization_config is another's",
                    )

    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return module.product(x)

    def fused(self, module: Any, shape: LinearShape) -> Any:
        if module.held is None:
            return self.plain.fused(module, shape)
        return fused(module)

    def dense(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if module.held is None:
            return self.plain.dense(module, shape, dtype, device)
        return module.held.dense(dtype)


class _State:
    """What has been loaded. wide: the weight, if the checkpoint has it unquantized. plain: (suffix, part) of those.
    inputs: part -> scale of its inputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.lock = threading.Lock()
        self.wide: torch.Tensor | None = None
        self.seen: set[tuple[str, str]] = set()
        self.plain: set[tuple[str, str]] = set()
        self.inputs: dict[str, torch.Tensor] = {}

    def note(self, suffix: str, part: str, tensor: torch.Tensor) -> None:
        self.seen.add((suffix, part))
        if suffix == "weight" and tensor.dtype.itemsize > 1:
            self.plain.add((suffix, part))


def block_rows(tensor: torch.Tensor, block: tuple[int, int], rows: int, shape: LinearShape) -> torch.Tensor:
    """Scales of blocks [ceil(rows / block rows), ceil(columns / block columns)] -> [rows, groups of this rank]."""
    wanted = (-(-rows // block[0]), -(-shape.full_in_features // block[1]))
    if tuple(tensor.shape) != wanted:
        raise WeightError(
            f"shape {list(tensor.shape)}, expected {list(wanted)}: one scale for each block of {block[0]}x{block[1]}",
            hint="quantization_config.weight_block_size is another's",
        )
    return scales.share_of_blocks(scales.as_float(tensor), block, rows, shape.in_offset, shape.in_features)


def check_stored(tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise WeightError unless `tensor` is e4m3 of `shape`."""
    if tensor.dtype != scales.E4M3:
        name = str(tensor.dtype).removeprefix("torch.")
        raise WeightError(
            f"dtype {name}, expected float8_e4m3fn", hint="other 8-bit formats are not served; convert the checkpoint"
        )
    if tuple(tensor.shape) != shape:
        raise WeightError(
            f"shape {list(tensor.shape)}, expected {list(shape)}",
            hint="config.json and the weight files are of different models",
        )


def one_number(tensor: torch.Tensor) -> torch.Tensor:
    """A scale [] or [1], float32."""
    if tensor.numel() != 1:
        raise WeightError(f"shape {list(tensor.shape)}, expected 1 number")
    return scales.as_float(tensor).reshape(())


__all__ = ["CheckpointLinear", "LinearPart", "OnlineLinear", "block_rows", "check_stored", "one_number"]
