"""Linear layers: kernels that stream the weight for few rows, the library for many; with what stands before and behind.

A weight must have been complete before the kernel that was launched last: its tiles are read while that one runs (see
`plugin_triton.dependent`). Weights of a model are.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from plugin_triton.dependent import dependent
from plugin_triton.launch import FLOATS, Launch
from plugin_triton.ops.activation import activate
from plugin_triton.ops.configs import ROWS, Config, choose
from plugin_triton.ops.gemv import gemv_kernel
from plugin_triton.ops.norm import add_rms_norm, rms_norm
from plugin_triton.ops.skinny import skinny_kernel

MAX_ROWS = ROWS[-1]
_VECTOR_BYTES = 16
_HALVES = (torch.bfloat16, torch.float16)  # what the tensor cores multiply here; float32 would be rounded


def pack_linear_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight as it is: the kernels read rows, and the library takes it too."""
    return weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K], bias [N] or None -> [T, N]."""
    if 0 < x.shape[0] <= MAX_ROWS:
        plan = _plan_for(x, weight, bias, None)
        if plan is not None:
            return plan(x, weight, bias)
    return F.linear(x, weight, bias)


def fused_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    activation: str | None = None,
    keep_normed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """One kernel for one row; for more, norm, product and activation, the latter two in one where that pays."""
    num_rows = x.shape[0]
    if num_rows == 1 and norm_weight is not None and norm_weight.dtype is x.dtype:
        plan = _plan_for(x, weight, bias, activation)
        if isinstance(plan, Gemv) and (residual is None or _beside(x, residual)):
            return plan.fused(x, weight, bias, residual, norm_weight, eps, keep_normed)
    total, normed = None, x
    if norm_weight is not None:
        if residual is None:
            total, normed = x, rms_norm(x, norm_weight, eps)
        else:
            normed, total = add_rms_norm(x, residual, norm_weight, eps)
    if activation is not None and 0 < num_rows <= MAX_ROWS:
        plan = _plan_for(normed, weight, bias, activation)
        if plan is not None:
            return plan(normed, weight, bias), total, normed if keep_normed else None
    y = linear(normed, weight, bias)
    return (y if activation is None else activate(y, activation)), total, normed if keep_normed else None


def _beside(x: torch.Tensor, residual: torch.Tensor) -> bool:
    return residual.dtype is x.dtype and residual.shape == x.shape and residual.stride(1) == 1


def _plan_for(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> Gemv | Skinny | None:
    """How this call is computed; None leaves it to the library."""
    dtype = x.dtype
    if (
        dtype not in FLOATS
        or weight.dtype is not dtype
        or x.dim() != 2
        or x.stride(1) != 1
        or not weight.is_contiguous()
        or (bias is not None and bias.dtype is not dtype)
    ):
        return None
    num_rows, (num_out, size) = x.shape[0], weight.shape
    rows = 1 if num_rows == 1 else 1 << (num_rows - 1).bit_length()
    return _plan(x.device, dtype, num_out, size, rows, activation, bias is not None)


@functools.cache
def _plan(
    device: torch.device, dtype: torch.dtype, num_out: int, size: int, rows: int, activation: str | None, bias: bool
) -> Gemv | Skinny | None:
    gated = activation is not None
    if not num_out or not size or (size * dtype.itemsize) % _VECTOR_BYTES or (gated and num_out % 2):
        return None
    n = num_out // 2 if gated else num_out
    config = choose(device, n, size, gated, rows)
    if config.kind == "library" or (config.kind == "skinny" and dtype not in _HALVES):
        return None
    return make_plan(config, device, dtype, n, size, activation, bias)


def make_plan(
    config: Config, device: torch.device, dtype: torch.dtype, n: int, k: int, activation: str | None, bias: bool
) -> Gemv | Skinny:
    """What computes y [rows, n] by a configuration of kind "gemv" or "skinny"."""
    make = Gemv if config.kind == "gemv" else Skinny
    return make(device, dtype, n, k, activation, bias, config)


class Gemv:
    """One row times a weight of one shape."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, n: int, k: int, activation: str | None, bias: bool, how: Config
    ) -> None:
        self.n = n
        self.blocks = -(-n // how.block_n)
        self.dtype, self.device, self.number = dtype, device, device.index or 0
        vector = min(_VECTOR_BYTES // dtype.itemsize, how.block_k)
        self.launches: dict[tuple[bool, bool, bool], Launch] = {}
        pdl = dependent(device)
        for norm, add, keep in ((False, False, False), (True, False, False), (True, True, False), (True, False, True),
                                (True, True, True)):  # fmt: skip
            constants = (
                n, k, how.block_n, how.block_k, vector, bias, norm, add, keep, activation or "none", pdl
            )  # fmt: skip
            launch = Launch(gemv_kernel, constants, num_warps=how.num_warps, num_stages=1, pdl=pdl)
            self.launches[norm, add, keep] = launch

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y = torch.empty((1, self.n), dtype=self.dtype, device=self.device)
        launch = self.launches[False, False, False]
        launch.start(self.number, self.blocks, 1, 1, x, weight, bias, y, None, None, None, None, 0.0)
        return y

    def fused(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        norm_weight: torch.Tensor,
        eps: float,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        y = torch.empty((1, self.n), dtype=self.dtype, device=self.device)
        add = residual is not None
        total = torch.empty(x.shape, dtype=self.dtype, device=self.device) if add else None
        normed = torch.empty(x.shape, dtype=self.dtype, device=self.device) if keep else None
        programs = self.blocks + (1 if add or keep else 0)
        launch = self.launches[True, add, keep]
        launch.start(self.number, programs, 1, 1, x, weight, bias, y, residual, norm_weight, total, normed, eps)
        return y, total if add else x, normed


class Skinny:
    """Up to MAX_ROWS rows times a weight of one shape."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, n: int, k: int, activation: str | None, bias: bool, how: Config
    ) -> None:
        self.n = n
        self.grid = (-(-n // how.block_n), how.split_k, 1)
        self.parts = (how.split_k, 1 if activation is None else 2, n, MAX_ROWS) if how.split_k > 1 else None
        self.number = device.index or 0
        pdl = dependent(device)
        constants = (
            n, k, MAX_ROWS, how.block_n, how.block_k, how.split_k, how.ahead, bias, activation or "none", pdl
        )  # fmt: skip
        self.launch = Launch(skinny_kernel, constants, num_warps=how.num_warps, num_stages=how.num_stages, pdl=pdl)

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        num_rows = x.shape[0]
        if x.stride(0) != x.shape[1]:
            x = x.contiguous()
        y = torch.empty((num_rows, self.n), dtype=x.dtype, device=x.device)
        parts = arrived = None
        if self.parts is not None:
            parts = torch.empty(self.parts, dtype=torch.float32, device=x.device)
            arrived = arrivals(x.device)
        self.launch.start(self.number, *self.grid, x, weight, bias, y, parts, arrived, num_rows)
        return y


@functools.cache
def arrivals(device: torch.device) -> torch.Tensor:
    """Counters for split products, zero between kernels. Shared by all: kernels that use it follow one another on one
    stream. Made before any graph is recorded."""
    return torch.zeros(1 << 14, dtype=torch.int32, device=device)
