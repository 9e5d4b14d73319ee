"""The format's arithmetic: float rows to integers and scales, and back."""

from __future__ import annotations

import torch

LARGEST = 127.0


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., N, K] -> (int8 [..., N, K], scale float32 [..., N]). A row of zeros has scale 1."""
    wide = weight.float()
    scale = wide.abs().amax(-1) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(wide / scale.unsqueeze(-1)).to(torch.int8), scale


def product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [T, K], weight int8 [N, K], scale float32 [N] -> [T, N] in x's dtype. The scale is of a row, so it may be
    multiplied afterwards: the integers are exact in any float type, and the rounding is that of one product."""
    return (torch.nn.functional.linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)
