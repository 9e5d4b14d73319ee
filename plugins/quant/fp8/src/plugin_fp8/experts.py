"""Experts with e4m3 weights, in the layouts that runners of expert weights in 8 bits take.

gate_up [E, 2I, H] (gate rows first) and down [E, H, I] in e4m3, with float32 scales:

| format       | scales["gate_up"]                | scales["down"]                | activations, one scale for |
|--------------|----------------------------------|-------------------------------|----------------------------|
| fp8_tensor   | [E, 2]: gate, up                 | [E]                           | a token                    |
| fp8_channel  | [E, 2I]                          | [E, H]                        | a token                    |
| fp8_block128 | [E, 2 ceil(I/128), ceil(H/128)]  | [E, ceil(H/128), ceil(I/128)] | 128 values of a token      |

Gate and up begin a block each. A rank whose share begins inside a block has rows of zeros before it (columns, of down),
so that its blocks are those of the checkpoint; I is the size with them. A runner that does not know the format leaves
the experts to this plugin: plain PyTorch, each chosen expert over its tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from core.interfaces.errors import ConfigError, WeightError
from core.interfaces.moe import ExpertWeights, MoeRunner
from core.interfaces.quant import ExpertSlot, ExpertsMethod, ExpertsShape
from core.layers.module import NO_EXPERT
from core.layers.moe import gated, loop_experts
from core.layers.unquantized import STACKED, UnquantizedExperts
from plugin_fp8 import scales
from plugin_fp8.config import BLOCK, CHANNEL, TENSOR, Format
from plugin_fp8.linear import check_stored, one_number

PARTS = ("gate", "up", "down")
NAMES = {TENSOR: "fp8_tensor", CHANNEL: "fp8_channel", BLOCK: "fp8_block128"}
SIZE = 128  # of a block


def hand_over(module: Any, weights: ExpertWeights) -> ExpertWeights | None:
    """To the layer's runner if it computes the format; else they are kept for `compute`."""
    module.register_parameter("gate_up", nn.Parameter(weights.gate_up, requires_grad=False))
    module.register_parameter("down", nn.Parameter(weights.down, requires_grad=False))
    for name, tensor in weights.scales.items():
        module.register_parameter(f"{name}_scale", nn.Parameter(tensor, requires_grad=False))
    runner: MoeRunner | None = getattr(module, "runner", None)
    if runner is not None and weights.format in runner.formats:
        return weights
    module.__dict__["own"] = weights
    return None


def compute(
    weights: ExpertWeights, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    """As `MoeRunner.run`, in float32 over quantized inputs."""
    inner = weights.down.shape[2]
    group = SIZE if weights.format == NAMES[BLOCK] else 0

    def product(rows: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        values, input_scale = scales.quantize_groups(rows, group or rows.shape[1])
        wide = values.float() * scales.spread(input_scale, group, rows.shape[1])
        return F.linear(wide, scales.dequantize(stored, scale, group, torch.float32))

    def by_row(scale: torch.Tensor, rows: int) -> torch.Tensor:
        """One expert's scales of one matrix, for each row."""
        if scale.dim() == 2:
            return scale.repeat_interleave(SIZE, 0)[:rows]
        return scale.reshape(-1, 1).expand(rows, 1)

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        halves = zip(weights.gate_up[expert].split(inner), weights.scales["gate_up"][expert].chunk(2), strict=True)
        wide = [product(rows, stored, by_row(scale, inner)) for stored, scale in halves]
        hidden = gated(torch.cat(wide, -1), weights.activation).to(x.dtype)
        return product(hidden, weights.down[expert], by_row(weights.scales["down"][expert], x.shape[1]))

    return loop_experts(x, topk_ids, topk_weights, len(weights.down), run)


class OnlineExperts(ExpertsMethod):
    """Loaded as they stand, quantized when all are there: one scale a row."""

    format = None

    def __init__(self) -> None:
        self.plain = UnquantizedExperts()

    def create(self, module: nn.Module, shape: ExpertsShape, dtype: torch.dtype, device: torch.device) -> None:
        self.plain.create(module, shape, dtype, device)

    def expected(self, shape: ExpertsShape) -> set[ExpertSlot]:
        return self.plain.expected(shape)

    def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> set[ExpertSlot]:
        return self.plain.covers(shape, suffix, part, expert)

    def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: torch.Tensor) -> None:
        self.plain.load(module, shape, suffix, part, expert, tensor)

    def finish(self, module: Any, shape: ExpertsShape) -> ExpertWeights | None:
        stored, found = {}, {}
        for name in ("gate_up", "down"):
            stored[name], scale = _quantize(getattr(module, name).data)
            found[name] = scale
            delattr(module, name)
        return hand_over(
            module, ExpertWeights(stored["gate_up"], stored["down"], NAMES[CHANNEL], found, shape.activation)
        )

    def apply(self, module: Any, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        return compute(module.own, x, topk_ids, topk_weights)


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, N, K] -> (e4m3 [E, N, K], scale [E, N]), an expert at a time: a wide copy of all would be large."""
    stored = torch.empty(weight.shape, dtype=scales.E4M3, device=weight.device)
    found = torch.empty(weight.shape[:2], dtype=torch.float32, device=weight.device)
    for expert, matrix in enumerate(weight):
        stored[expert], scale = scales.quantize_rows(matrix)
        found[expert] = scale.squeeze(1)
    return stored, found


class CheckpointExperts(ExpertsMethod):
    """Experts that a checkpoint holds in e4m3, one by one or stacked. Known scales of inputs are read and not used:
    inputs are measured, which clamps nothing."""

    format = None

    def __init__(self, format_: Format) -> None:
        self.layout = format_

    def create(self, module: nn.Module, shape: ExpertsShape, dtype: torch.dtype, device: torch.device) -> None:
        if self.layout.weights == BLOCK and self.layout.block != (SIZE, SIZE):
            raise ConfigError(
                f"the experts at {shape.path} are in blocks of {self.layout.block}; only {SIZE}x{SIZE} are served",
                field="quantization_config.weight_block_size",
                value=self.layout.block,
                hint="take a checkpoint with such blocks, or an unquantized one with --quantization fp8",
            )
        num, hidden, size = shape.num_experts, shape.hidden_size, self.before(shape) + shape.intermediate_size
        gate_up = torch.zeros(num, 2 * size, hidden, dtype=scales.E4M3, device=device)
        down = torch.zeros(num, hidden, size, dtype=scales.E4M3, device=device)
        module.register_parameter("gate_up", nn.Parameter(gate_up, requires_grad=False))
        module.register_parameter("down", nn.Parameter(down, requires_grad=False))
        for name, sizes in self.scale_shapes(num, hidden, size).items():
            module.register_parameter(
                f"{name}_scale", nn.Parameter(torch.ones(sizes, device=device), requires_grad=False)
            )
        module.__dict__["loaded"] = set[tuple[str, str, int]]()

    def before(self, shape: ExpertsShape) -> int:
        """Rows of zeros before a rank's share."""
        return shape.intermediate_offset % SIZE if self.layout.weights == BLOCK else 0

    def scale_shapes(self, num: int, hidden: int, size: int) -> dict[str, tuple[int, ...]]:
        if self.layout.weights == TENSOR:
            return {"gate_up": (num, 2), "down": (num,)}
        if self.layout.weights == CHANNEL:
            return {"gate_up": (num, 2 * size), "down": (num, hidden)}
        wide, tall = -(-hidden // SIZE), -(-size // SIZE)
        return {"gate_up": (num, 2 * tall, wide), "down": (num, wide, tall)}

    def expected(self, shape: ExpertsShape) -> set[ExpertSlot]:
        return {
            (suffix, part, e)
            for suffix in ("weight", self.layout.scale)
            for part in PARTS
            for e in range(shape.num_experts)
        }

    def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> set[ExpertSlot]:
        known = part in PARTS and 0 <= expert < shape.num_experts
        if known and self.layout.static and suffix == self.layout.input_scale:
            return set()
        stacked = self._stacked(suffix) if not part and expert == NO_EXPERT else None
        if stacked is not None:
            suffix, parts = stacked
            return {(suffix, name, e) for name in parts for e in range(shape.num_experts)}
        return {(suffix, part, expert)}

    def _stacked(self, suffix: str) -> tuple[str, tuple[str, ...]] | None:
        """("weight" or the scale's suffix, parts) of a tensor of all experts; None for one of another name.
        "gate_up_proj_scale_inv" is the scale of "gate_up_proj"."""
        ending = self.layout.scale.removeprefix("weight")
        for name, parts in STACKED.items():
            if suffix == name:
                return "weight", parts
            if suffix in (name + ending, f"{name}.{self.layout.scale}"):
                return self.layout.scale, parts
        return None

    def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: torch.Tensor) -> None:
        stacked = self._stacked(suffix) if not part and expert == NO_EXPERT else None
        if stacked is not None:
            self._load_stacked(module, shape, *stacked, tensor)
        elif part not in PARTS or not 0 <= expert < shape.num_experts:
            raise WeightError(f"{shape.path}: {suffix} of part {part!r} names no expert")
        elif suffix == "weight":
            self._weight(module, shape, part, expert, tensor)
        elif suffix == self.layout.scale:
            self._scale(module, shape, part, expert, tensor)
        elif suffix == self.layout.input_scale and self.layout.static:
            one_number(tensor)
        else:
            raise WeightError(f"{shape.path} has no {suffix}")

    def _load_stacked(
        self, module: Any, shape: ExpertsShape, suffix: str, parts: tuple[str, ...], tensor: torch.Tensor
    ) -> None:
        if not tensor.dim() or len(tensor) != shape.num_experts:
            raise WeightError(f"shape {list(tensor.shape)}, expected {shape.num_experts} experts")
        single = self._weight if suffix == "weight" else self._scale
        for expert, matrix in enumerate(tensor):
            pieces = matrix.chunk(len(parts)) if matrix.dim() and len(matrix) > 1 else [matrix] * len(parts)
            for name, piece in zip(parts, pieces, strict=True):
                single(module, shape, name, expert, piece)

    def _weight(self, module: Any, shape: ExpertsShape, part: str, expert: int, tensor: torch.Tensor) -> None:
        full, local, first = shape.full_intermediate_size, shape.intermediate_size, shape.intermediate_offset
        before = self.before(shape)
        if tensor.dtype.itemsize > 1 and tensor.dtype.is_floating_point:
            raise WeightError(
                f"dtype {str(tensor.dtype).removeprefix('torch.')}, expected float8_e4m3fn",
                hint="experts that quantization_config does not leave out must be quantized; name them in its list",
            )
        data = module.down.data if part == "down" else module.gate_up.data
        target = data[expert].view(torch.uint8)
        if part == "down":
            check_stored(tensor, (shape.hidden_size, full))
            target[:, before:].copy_(tensor.view(torch.uint8).narrow(1, first, local))
        else:
            check_stored(tensor, (full, shape.hidden_size))
            start = before + (before + local if part == "up" else 0)
            target.narrow(0, start, local).copy_(tensor.view(torch.uint8).narrow(0, first, local))

    def _scale(self, module: Any, shape: ExpertsShape, part: str, expert: int, tensor: torch.Tensor) -> None:
        full, local, first = shape.full_intermediate_size, shape.intermediate_size, shape.intermediate_offset
        value = scales.as_float(tensor)
        target = (module.down_scale if part == "down" else module.gate_up_scale).data[expert]
        rows, columns = (shape.hidden_size, full) if part == "down" else (full, shape.hidden_size)
        if self.layout.weights == TENSOR:
            number = one_number(tensor)
            if part == "down":
                target.copy_(number)
            else:
                target[0 if part == "gate" else 1] = number
            return
        if self.layout.weights == CHANNEL:
            if value.numel() != rows:
                raise WeightError(f"shape {list(tensor.shape)}, expected {rows} numbers: one scale for each row")
            own = value.reshape(-1)
            target = target if part == "down" else target.chunk(2)[part == "up"]
            target.copy_(own if part == "down" else own.narrow(0, first, local))
            return
        wanted = (-(-rows // SIZE), -(-columns // SIZE))
        if tuple(value.shape) != wanted:
            raise WeightError(f"shape {list(tensor.shape)}, expected {list(wanted)}: one scale for each 128x128 block")
        start = first // SIZE
        if part == "down":
            target.copy_(value.narrow(1, start, target.shape[1]))
        else:
            half = target.chunk(2)[part == "up"]
            half.copy_(value.narrow(0, start, half.shape[0]))

    def finish(self, module: Any, shape: ExpertsShape) -> ExpertWeights | None:
        found = {"gate_up": module.gate_up_scale.data, "down": module.down_scale.data}
        return hand_over(
            module,
            ExpertWeights(module.gate_up.data, module.down.data, NAMES[self.layout.weights], found, shape.activation),
        )

    def apply(self, module: Any, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        return compute(module.own, x, topk_ids, topk_weights)
