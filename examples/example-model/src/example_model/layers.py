"""Layers that core does not bring: LayerNorm with a bias, and projections stored as "Conv1D".

GPT-2 keeps the weight of a projection as [in, out], transposed to all others, and query, key and value as one tensor.
Both are matters of loading only: a subclass of core's layer turns the tensor and hands its parts on. Sharding over
ranks and quantization are then core's as ever, since they speak of core's layers and not of the checkpoint's layout.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from core.interfaces.build import BuildContext
from core.interfaces.errors import WeightError
from core.layers.linear import LinearBase, MergedLinear, QkvLinear, RowLinear
from core.layers.module import NO_EXPERT, Slot, WeightModule, check_tensor, empty_parameter


class LayerNorm(WeightModule):
    """(x - mean) / sqrt(var + eps) * weight + bias. Every rank holds it whole."""

    def __init__(self, size: int, eps: float, ctx: BuildContext) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter(size, dtype=ctx.dtype, device=ctx.device)
        self.bias = empty_parameter(size, dtype=ctx.dtype, device=ctx.device)

    def expected(self) -> set[Slot]:
        # What a checkpoint must give; core counts, so a missing or an extra tensor is an error that names it.
        return {("weight", "", NO_EXPERT), ("bias", "", NO_EXPERT)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        target = self.weight if suffix == "weight" else self.bias
        check_tensor(tensor, tuple(target.shape))
        target.data.copy_(tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ConvColumn(MergedLinear):
    """[in, out] in the checkpoint; the output is split over the ranks."""

    def __init__(self, path: str, in_features: int, out_features: int, ctx: BuildContext) -> None:
        super().__init__(path, in_features, {"": out_features}, ctx, bias=True)

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        super().load(suffix, part, turned(self, suffix, tensor), expert)


class ConvRow(RowLinear):
    """[in, out] in the checkpoint; the input is split over the ranks and the results are summed."""

    def __init__(self, path: str, in_features: int, out_features: int, ctx: BuildContext) -> None:
        super().__init__(path, in_features, out_features, ctx, bias=True)

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        super().load(suffix, part, turned(self, suffix, tensor), expert)


class ConvQkv(QkvLinear):
    """[in, q + k + v] in the checkpoint, one tensor for what core keeps as the parts "q", "k" and "v"."""

    def __init__(self, path: str, hidden_size: int, num_heads: int, ctx: BuildContext) -> None:
        super().__init__(path, hidden_size, num_heads, num_heads, hidden_size // num_heads, ctx, bias=True)

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        # One tensor fills three slots. Without this, core would miss all three and call the tensor unexpected.
        return {slot for slot in self.expected() if slot[0] == suffix} or {(suffix, part, expert)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        wide = turned(self, suffix, tensor)
        rows = [place.full_out_features for place in self.shape.parts]
        if wide.ndim < 1 or wide.shape[0] != sum(rows):
            raise WeightError(f"shape {list(tensor.shape)}, expected {sum(rows)} outputs for query, key and value")
        for place, piece in zip(self.shape.parts, wide.split(rows), strict=True):
            super().load(suffix, place.name, piece, expert)


def turned(layer: LinearBase, suffix: str, tensor: torch.Tensor) -> torch.Tensor:
    """The weight as [out, in]; other tensors as they are."""
    if suffix != "weight":
        return tensor
    if tensor.ndim != 2:
        raise WeightError(f"shape {list(tensor.shape)}, expected [{layer.shape.full_in_features}, outputs]")
    return tensor.t()
