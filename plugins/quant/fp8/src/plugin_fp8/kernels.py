"""What of Triton's there is for e4m3 products, and the memory they share; where there is no Triton, nothing is used.

Weights are stored [N, K] with scales [N, G] float32, G groups of columns; inputs [T, K] with scales [T, G].
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from plugin_fp8.front import Front

HAS_TRITON = importlib.util.find_spec("triton") is not None
FEW = 64  # tokens that `few_product` takes


def takes_few(group: int, columns: int) -> bool:
    """Whether `few_product` can serve weights of so many columns; group: that share a scale, 0 for all."""
    return HAS_TRITON and columns % 16 == 0 and (group == 0 or group in (32, 64, 128))


def takes_groups(group: int, columns: int) -> bool:
    """Whether `grouped_product` can."""
    return HAS_TRITON and columns % 16 == 0 and group in (32, 64, 128)


def norms(columns: int) -> bool:
    """Whether `front.norm_quantize` takes rows of so many columns."""
    return HAS_TRITON and columns <= 16384


class Scratch:
    """Device memory that the layers of a model share for sums in parts, since they run one after another. It is taken
    while layers are finished, never in a step, so that recorded steps find it where it was."""

    def __init__(self) -> None:
        self.memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def reserve(self, device: torch.device, rows: int, columns: int, group: int) -> None:
        """For products of FEW tokens with a weight [rows, columns]."""
        from plugin_fp8 import few

        numbers, counters = few.needs(rows, columns, group, FEW)
        held = (0, 0) if self.memory is None else (self.memory[0].numel(), self.memory[1].numel())
        if numbers > held[0] or counters > held[1]:
            parts = torch.empty(max(numbers, held[0]), dtype=torch.float32, device=device)
            self.memory = parts, torch.zeros(max(counters, held[1]), dtype=torch.int32, device=device)


def few_product(
    x: torch.Tensor, scale_x: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, group: int,
    bias: torch.Tensor | None, dtype: torch.dtype, scratch: Scratch,
) -> torch.Tensor:  # fmt: skip
    """x [T, K] e4m3, 0 < T <= FEW, times stored [N, K] -> [T, N] in `dtype`. group: columns that share a scale, 0 for
    all. scratch: with memory reserved for the weight."""
    from plugin_fp8 import few

    rows, columns = stored.shape
    y = torch.empty(x.shape[0], rows, dtype=dtype, device=x.device)
    tile = few.tile_for(x.shape[0], rows, columns, group)
    few.run(tile, x, scale_x, stored, scale, group, bias, y, scratch.memory, pdl=dependent(x.device))
    return y


def grouped_product(
    x: torch.Tensor, scale_x: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, group: int,
    bias: torch.Tensor | None, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """x [T, K] e4m3 with scale_x [T, G], T > 0, times stored [N, K] with scale [N, G] -> [T, N] in `dtype`."""
    from plugin_fp8 import grouped

    y = torch.empty(x.shape[0], stored.shape[0], dtype=dtype, device=stored.device)
    grouped.run(x, scale_x, stored, scale, group, bias, y)
    return y


def norm_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, group: int, keep_normed: bool
) -> Front:
    """See `front.norm_quantize`."""
    from plugin_fp8 import front

    return front.norm_quantize(x, residual, weight, eps, group, keep_normed=keep_normed, pdl=dependent(x.device))


@functools.cache
def dependent(device: torch.device) -> bool:
    """Whether a kernel may start while the one in front ends (NVIDIA, compute capability 9.0 and later)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    capability: Any = torch.cuda.get_device_capability(device)
    return bool(capability >= (9, 0))
