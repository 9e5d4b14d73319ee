"""References of the operations that quantize activations to 8-bit floating point: one scale for a tensor, for each
token, or for each group of neighbouring columns.

q = round(x * (1 / scale)) in `torch.float8_e4m3fn`, clamped to its range; x is about q * scale. A dynamic scale is the
largest magnitude over 448, the format's largest number, so that nothing is clamped (Micikevicius et al. 2022,
arXiv:2209.05433); rows of zeros have the smallest scale there is. Everything is computed in float32.
"""

from __future__ import annotations

import torch

FP8_MAX = 448.0  # of float8_e4m3fn
MIN_SCALE = 1e-12


def scale_of(largest: torch.Tensor) -> torch.Tensor:
    """largest amounts [...] float32 -> scales [...]: divided, on every device.

    Of a tensor divided by a Python number some devices make a product with the rounded reciprocal. Half of all scales
    are then off in the last place, and numbers in the middle between two of the format, which are common among those
    of bfloat16, go to the other one."""
    return (largest / largest.new_full((), FP8_MAX)).clamp_min(MIN_SCALE)


def _quotient(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x * scale.reciprocal()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def quantize_fp8_tensor(x: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (q [T, K] float8_e4m3fn, scale [1] float32). scale: a known one, returned as it is; None measures."""
    wide = x.float()
    if scale is None:
        largest = wide.abs().amax() if x.numel() else wide.new_zeros(())
        scale = scale_of(largest).view(1)
    return _quotient(wide, scale), scale


def quantize_fp8_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (q [T, K] float8_e4m3fn, scale [T, 1] float32)."""
    wide = x.float()
    scale = scale_of(wide.abs().amax(1, keepdim=True))
    return _quotient(wide, scale), scale


def quantize_fp8_group(x: torch.Tensor, group: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> (q [T, K] float8_e4m3fn, scale [T, ceil(K / group)] float32); the last group may be shorter."""
    num_rows, size = x.shape
    num_groups = -(-size // group)
    wide = torch.nn.functional.pad(x.float(), (0, num_groups * group - size)).view(num_rows, num_groups, group)
    scale = scale_of(wide.abs().amax(2, keepdim=True))
    return _quotient(wide, scale).view(num_rows, num_groups * group)[:, :size].contiguous(), scale.squeeze(2)
