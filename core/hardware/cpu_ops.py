"""What a processor runs faster than the references. Chosen by measurement; the others stay with the references.

Two facts decide (two cores with AVX-512 bf16, torch 2.13):
- A bfloat16 product spends 20 to 40 µs on laying out the weight anew at every call. Packed once, products of one to
  32 rows take between half and two thirds of the time.
- For one or two rows and a weight that fits the cache even a packed bfloat16 product has 15 µs of fixed cost, and
  float32 takes half as long. Such weights are kept in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

# Elements of a weight, per thread, up to which a float32 copy serves one or two rows faster.
_SMALL_ELEMENTS_PER_THREAD = 200_000
_SMALL_ROWS = 2
# Elements from which fewer passes over memory beat torch.rms_norm's fewer calls.
_LARGE_NORM_ELEMENTS = 1 << 17


class PackedLinear:
    """A bfloat16 weight [N, K] in the layout of the CPU's matrix product. Keeps no reference to the original.

    packed: opaque tensor. small: float32 [N, K] copy for one or two rows, or None.
    """

    __slots__ = ("out_features", "packed", "small")

    def __init__(self, weight: torch.Tensor, keep_small: bool) -> None:
        self.out_features = weight.shape[0]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.small = weight.detach().float() if keep_small else None


def cpu_ops(num_threads: int) -> Mapping[str, Callable[..., Any]]:
    """The table of replacements for a process that computes with `num_threads` threads."""
    return {
        "linear": linear,
        "pack_linear_weight": _packer(_SMALL_ELEMENTS_PER_THREAD * num_threads),
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "qk_norm": rms_norm,
    }


def _packer(small_elements: int) -> Callable[[torch.Tensor], Any]:
    can_pack = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def pack_linear_weight(weight: torch.Tensor) -> Any:
        """weight [N, K] -> PackedLinear for bfloat16, else the weight itself."""
        if not can_pack or weight.dtype != torch.bfloat16 or weight.dim() != 2 or not weight.numel():
            return weight
        return PackedLinear(weight, weight.numel() <= small_elements)

    return pack_linear_weight


def linear(x: torch.Tensor, weight: torch.Tensor | PackedLinear, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] -> [T, N]; weight [N, K] as a tensor or as `pack_linear_weight` returned it."""
    if isinstance(weight, torch.Tensor):
        return F.linear(x, weight, bias)
    num_rows = x.shape[0]
    if weight.small is not None and num_rows <= _SMALL_ROWS:
        wide_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.small, wide_bias).to(x.dtype)
    if num_rows == 0:
        return x.new_empty(0, weight.out_features)
    return torch.ops.mkldnn._linear_pointwise(x, weight.packed, bias, "none", [], "")


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., H], weight [H]; statistics in float32."""
    if x.numel() < _LARGE_NORM_ELEMENTS:
        return torch.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    factor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    # float() returns float32 input itself, which must not be written to.
    scaled = wide * factor if wide is x else wide.mul_(factor)
    return scaled.to(x.dtype).mul_(weight)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, H] -> (rms_norm(x + residual), x + residual)."""
    residual = x + residual
    return rms_norm(residual, weight, eps), residual
