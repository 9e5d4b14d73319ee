"""x times an e4m3 weight: the reference for any device, and what the matrix units of a GPU do.

All take x [T, K] and give [T, N] in x's dtype, bias added. Inputs are quantized as the layout says: to a known scale,
or each token (each group of a token's columns) to its own largest amount.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from plugin_fp8 import kernels, scales

Product = Callable[[torch.Tensor], torch.Tensor]
Ops = Mapping[str, Callable[..., Any]]
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


def product_of(weight: Weight, ops: Ops, scratch: kernels.Scratch) -> Product:
    """What is fastest on the weight's device and can hold its shape."""
    if weight.stored.device.type != "cuda":
        return Reference(weight)
    rows, columns = weight.stored.shape
    if weight.by_row and not (rows % _SCALED_STEP or columns % _SCALED_STEP):
        return Scaled(weight, ops, scratch)
    if not weight.by_row and weight.input_scale is None and kernels.takes_groups(weight.group, columns):
        return Grouped(weight, ops, scratch)
    return Dense(weight)


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


class Quantized(ABC):
    """Quantizes x, then multiplies. Few tokens go through a kernel of their own, where all that counts is how fast the
    weight is read. group: columns that share a scale, 0 for all."""

    def __init__(self, weight: Weight, group: int, scratch: kernels.Scratch) -> None:
        self.weight, self.group, self.scratch = weight, group, scratch
        rows, columns = weight.stored.shape
        self.few = kernels.FEW if kernels.takes_few(group, columns) else 0
        if self.few:
            scratch.reserve(weight.stored.device, rows, columns, group)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not x.shape[0]:
            return x.new_empty(0, self.weight.stored.shape[0])
        return self.multiply(*self.quantize(x), x.dtype)

    def multiply(self, x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x [T, K] e4m3 with scale [T, G], T > 0 -> [T, N] in `dtype`."""
        if x.shape[0] > self.few:
            return self.many(x, scale, dtype)
        weight = self.weight
        return kernels.few_product(
            x, scale, weight.stored, weight.scale, self.group, weight.bias, dtype, self.scratch
        )  # fmt: skip

    @abstractmethod
    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(e4m3 [T, K], scale [T, G])."""

    @abstractmethod
    def many(self, x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`multiply` for any number of tokens."""


class Scaled(Quantized):
    """A scale for each token and each row of the weight: torch's scaled product."""

    def __init__(self, weight: Weight, ops: Ops, scratch: kernels.Scratch) -> None:
        super().__init__(weight, 0, scratch)
        self.right = weight.stored.t()
        self.right_scale = weight.scale.t().contiguous()  # [1, N]
        self.by_token = ops["quantize_fp8_token"]
        self.bias = weight.bias
        self.narrow_bias = weight.bias if weight.bias is None or weight.bias.dtype == torch.bfloat16 else None

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = self.weight.input_scale
        if known is None:
            found: tuple[torch.Tensor, torch.Tensor] = self.by_token(x)
            return found
        return scales.to_e4m3(x.float() / known), known.expand(x.shape[0], 1).contiguous()

    def many(self, x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # Products of rows with a scale each come in bfloat16 only, and so does the bias that they add.
        y = torch._scaled_mm(
            x, self.right, scale, self.right_scale, self.narrow_bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        if dtype is not torch.bfloat16:
            y = y.to(dtype)
        return y if self.bias is self.narrow_bias or self.bias is None else y + self.bias


class Grouped(Quantized):
    """Blocks: a Triton product that takes a scale for each row and group of columns of both sides."""

    def __init__(self, weight: Weight, ops: Ops, scratch: kernels.Scratch) -> None:
        super().__init__(weight, weight.group, scratch)
        self.by_group = ops["quantize_fp8_group"]

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = self.by_group(x, self.group)
        return found

    def many(self, x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        weight = self.weight
        return kernels.grouped_product(x, scale, weight.stored, weight.scale, self.group, weight.bias, dtype)
