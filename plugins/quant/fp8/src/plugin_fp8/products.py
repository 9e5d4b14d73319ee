"""x times an e4m3 weight: the reference for any device, and what the matrix units of a GPU do.

All take x [T, K] and give [T, N] in x's dtype, bias added. Inputs are quantized as the layout says: to a known scale,
or each token (each group of a token's columns) to its own largest amount.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from plugin_fp8 import kernels, scales

Product = Callable[[torch.Tensor], torch.Tensor]
# Rows and columns that torch's scaled product takes are multiples of this.
_SCALED_STEP = 16


@dataclass(frozen=True, slots=True)
class Weight:
    """stored [N, K] e4m3; scale [N, G] float32, for columns in groups of `group` (one group: the whole row);
    input_scale []: of the inputs where it is known; bias [N] or None."""

    stored: torch.Tensor
    scale: torch.Tensor
    group: int
    input_scale: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def by_row(self) -> bool:
        return self.scale.shape[1] == 1

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[N, K] in `dtype`."""
        return scales.dequantize(self.stored, self.scale, self.group, dtype)


def product_of(
    weight: Weight, ops: Mapping[str, Callable[..., Any]], few_rows: int, scratch: kernels.Scratch
) -> Product:
    """What is fastest on the weight's device and can hold its shape. few_rows: see the settings."""
    if weight.stored.device.type != "cuda":
        return Reference(weight)
    rows, columns = weight.stored.shape
    many: Product
    if weight.by_row and not (rows % _SCALED_STEP or columns % _SCALED_STEP):
        many = Scaled(weight, ops)
    elif not weight.by_row and weight.input_scale is None and kernels.takes_groups(weight.group, columns):
        many = Grouped(weight, ops)
    else:
        many = Dense(weight)
    if few_rows and kernels.takes_few(weight.group if not weight.by_row else 0, columns):
        return Few(weight, many, few_rows, scratch)
    return many


class Reference:
    """In float32: inputs quantized and made wide again, times the wide weight."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        y = F.linear(self.inputs(x), weight.dense(torch.float32))
        if weight.bias is not None:
            y += weight.bias
        return y.to(x.dtype)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What the quantized inputs stand for, float32."""
        weight = self.weight
        if weight.input_scale is not None:
            return scales.to_e4m3(x.float() / weight.input_scale).float() * weight.input_scale
        stored, scale = scales.quantize_groups(x, x.shape[1] if weight.by_row else weight.group)
        return stored.float() * scales.spread(scale, weight.group, x.shape[1])


class Dense:
    """A wide copy of the weight in each call: right for any shape, and slow."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.dense(x.dtype), self.weight.bias)


class Scaled:
    """torch's scaled product: a scale for each token and each row of the weight."""

    def __init__(self, weight: Weight, ops: Mapping[str, Callable[..., Any]]) -> None:
        self.stored = weight.stored.t()
        self.scale = weight.scale.t().contiguous()  # [1, N]
        self.bias = weight.bias
        self.input_scale = weight.input_scale
        self.quantize = ops.get("quantize_fp8_token", scales.quantize_rows)
        self.wide_bias = weight.bias is not None and weight.bias.dtype != torch.bfloat16

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not x.shape[0]:
            return x.new_empty(0, self.stored.shape[1])
        if self.input_scale is None:
            stored, scale = self.quantize(x)
        else:
            stored = scales.to_e4m3(x.float() / self.input_scale)
            scale = self.input_scale.expand(x.shape[0], 1).contiguous()
        bias = None if self.wide_bias else self.bias
        # The products of rows with a scale each come in bfloat16 only.
        y = torch._scaled_mm(
            stored, self.stored, scale, self.scale, bias, out_dtype=torch.bfloat16, use_fast_accum=True
        ).to(x.dtype)
        return y if self.bias is None or not self.wide_bias else y + self.bias


class Grouped:
    """Blocks: a Triton product that takes a scale for each row and group of columns of both sides."""

    def __init__(self, weight: Weight, ops: Mapping[str, Callable[..., Any]]) -> None:
        self.weight = weight
        self.quantize = ops.get("quantize_fp8_group", scales.quantize_groups)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if not x.shape[0]:
            return x.new_empty(0, weight.stored.shape[0])
        stored, scale = self.quantize(x, weight.group)
        return kernels.grouped_product(stored, scale, weight.stored, weight.scale, weight.group, weight.bias, x.dtype)


class Few:
    """Few tokens are multiplied as they are, since reading the weight is what takes the time."""

    def __init__(self, weight: Weight, many: Product, few_rows: int, scratch: kernels.Scratch) -> None:
        self.weight, self.many, self.few_rows, self.scratch = weight, many, few_rows, scratch
        self.group = 0 if weight.by_row else weight.group
        rows, columns = weight.stored.shape
        scratch.reserve(weight.stored.device, rows, columns, self.group, few_rows)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not 0 < x.shape[0] <= self.few_rows:
            return self.many(x)
        weight = self.weight
        return kernels.few_rows_product(x, weight.stored, weight.scale, self.group, weight.bias, self.scratch)
