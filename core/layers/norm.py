"""Root-mean-square normalisation."""

from __future__ import annotations

import torch

from core.interfaces.build import BuildContext
from core.layers.module import NO_EXPERT, Slot, WeightModule, check_tensor, empty_parameter


class RmsNorm(WeightModule):
    """y = x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).
    Every rank holds the whole weight [size]. `op`: "rms_norm", or "qk_norm" where the input is heads [T, H, size].
    offset: added to the checkpoint's weight as it is loaded, in float32, for models that store it less one."""

    kernel_weight: torch.Tensor

    def __init__(
        self, path: str, size: int, eps: float, ctx: BuildContext, *, op: str = "rms_norm", offset: float = 0.0
    ) -> None:
        super().__init__()
        self.offset = offset
        self.path = path
        self.eps = eps
        self.weight = empty_parameter(size, dtype=ctx.dtype, device=ctx.device)
        self.op = ctx.ops[op]
        self.add_op = ctx.ops["add_rms_norm"]
        self.__dict__["kernel_weight"] = self.weight.data

    def expected(self) -> set[Slot]:
        return {("weight", "", NO_EXPERT)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        check_tensor(tensor, tuple(self.weight.shape))
        self.weight.data.copy_(tensor.float() + self.offset if self.offset else tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x, self.kernel_weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of the sum, the sum), with residual = x + residual."""
        return self.add_op(x, residual, self.kernel_weight, self.eps)
