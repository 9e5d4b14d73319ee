"""Triton kernels for e4m3 weights: few tokens as they are, and many quantized with a scale for each group of columns.

Where there is no Triton nothing here is used (`takes_*` say no). Weights are stored [N, K]; scales are [N, G] float32,
G groups of columns, or one a row. Sums are in float32.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
FEW_ROWS = 64  # most that `few_rows_product` takes


def takes_few(group: int, columns: int) -> bool:
    """Whether `few_rows_product` can serve weights of so many columns; group: that share a scale, 0 for all."""
    return HAS_TRITON and columns % 16 == 0 and (group == 0 or (group % 32 == 0 and 128 % group == 0))


def takes_groups(group: int, columns: int) -> bool:
    """Whether `grouped_product` can."""
    return HAS_TRITON and columns % 16 == 0 and group in (32, 64, 128)


class Scratch:
    """Device memory that the layers of a model share for sums in parts, since they run one after another. It is taken
    while layers are finished, never in a step, so that recorded steps find it where it was."""

    def __init__(self) -> None:
        self.memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def reserve(self, device: torch.device, rows: int, columns: int, group: int, few_rows: int) -> None:
        """For a weight [rows, columns] and up to `few_rows` tokens."""
        from plugin_fp8 import few

        numbers, counters = few.needs(rows, columns, group, few_rows)
        held = (0, 0) if self.memory is None else (self.memory[0].numel(), self.memory[1].numel())
        if numbers > held[0] or counters > held[1]:
            parts = torch.empty(max(numbers, held[0]), dtype=torch.float32, device=device)
            self.memory = parts, torch.zeros(max(counters, held[1]), dtype=torch.int32, device=device)


def few_rows_product(
    x: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, group: int, bias: torch.Tensor | None, scratch: Scratch
) -> torch.Tensor:
    """x [T, K] with 0 < T <= FEW_ROWS, not quantized -> [T, N] in x's dtype. group: columns that share a scale, 0 for
    all of a row. scratch: with memory reserved for such a product."""
    from plugin_fp8 import few

    x = x.contiguous()
    rows, columns = stored.shape
    y = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    tile = few.tile_for(x.shape[0], rows, columns, group)
    few.run(tile, x, stored, scale, group, bias, y, scratch.memory, pdl=dependent(x.device))
    return y


def grouped_product(
    stored_x: torch.Tensor, scale_x: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, group: int,
    bias: torch.Tensor | None, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """stored_x [T, K] e4m3 with scale_x [T, G], times stored [N, K] with scale [N, G] -> [T, N] in `dtype`; T > 0."""
    from plugin_fp8 import grouped

    y = torch.empty(stored_x.shape[0], stored.shape[0], dtype=dtype, device=stored.device)
    grouped.run(stored_x, scale_x, stored, scale, group, bias, y)
    return y


@functools.cache
def dependent(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it ends (NVIDIA, compute capability 9.0 and later)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    capability: Any = torch.cuda.get_device_capability(device)
    return bool(capability >= (9, 0))
