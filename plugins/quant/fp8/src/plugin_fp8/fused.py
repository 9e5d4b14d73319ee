"""A layer with what stands around it: the norm in front quantizes for it, the gate behind is the device's own."""

from __future__ import annotations

import torch

from plugin_fp8 import kernels
from plugin_fp8.products import Ops, Quantized

_GELU = {"gelu": "none", "gelu_tanh": "tanh"}


class Fused:
    """As operation `fused_linear` of core, whose weight and bias are the layer's own."""

    def __init__(self, product: Quantized, ops: Ops) -> None:
        self.product = product
        self.rms_norm, self.add_rms_norm = ops["rms_norm"], ops["add_rms_norm"]
        self.silu, self.gelu = ops["silu_and_mul"], ops["gelu_and_mul"]
        columns = product.weight.stored.shape[1]
        self.in_one = product.weight.input_scale is None and kernels.norms(columns)
        self.dependent = kernels.dependent(product.weight.stored.device)
        if self.in_one:
            from plugin_fp8.front import norm_quantize

            self.norm_quantize = norm_quantize

    def __call__(
        self,
        x: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        norm_weight: torch.Tensor | None = None,
        eps: float = 0.0,
        activation: str | None = None,
        keep_normed: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        product, total, normed = self.product, None, None
        if norm_weight is not None and self.in_one and x.shape[0]:
            stored, scale, total, normed = self.norm_quantize(
                x, residual, norm_weight, eps, product.group, keep_normed=keep_normed, pdl=self.dependent
            )
            y = product.multiply(stored, scale, x.dtype)
        else:
            if norm_weight is not None and residual is not None:
                x, total = self.add_rms_norm(x, residual, norm_weight, eps)
            elif norm_weight is not None:
                total, x = x, self.rms_norm(x, norm_weight, eps)
            normed = x
            y = product(x)
        if activation is not None:
            y = self.silu(y) if activation == "silu" else self.gelu(y, _GELU[activation])
        return y, total, normed if keep_normed else None
