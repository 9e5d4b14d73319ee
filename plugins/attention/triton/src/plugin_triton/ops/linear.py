"""Linear layers: kernels that stream the weight for few rows, the library for many; with what stands before and behind.

A weight must have been complete before the kernel that was launched last: its tiles are read while that one runs (see
`plugin_triton.dependent`). Weights of a model are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from core.ops.bind import bound_by
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


class BoundLinear:
    """Products with one weight [N, K] and bias [N] or None: what the weight decides is found once."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.dtype, self.device = weight.dtype, weight.device
        self.num_out, self.size = weight.shape
        self.right = weight.t()  # torch.nn.functional.linear makes it in each call
        self.known = (
            self.dtype in FLOATS and weight.is_contiguous() and (bias is None or bias.dtype is self.dtype)
        )  # fmt: skip
        self._plans: dict[tuple[int, str | None], Gemv | Skinny | None] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        if x.dim() != 2:
            return F.linear(x, self.weight, self.bias)
        if 0 < x.shape[0] <= MAX_ROWS:
            plan = self.plan(x, None)
            if plan is not None:
                return plan(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(x, self.right)
        return torch.addmm(self.bias, x, self.right)

    def plan(self, x: torch.Tensor, activation: str | None) -> Gemv | Skinny | None:
        """How x with few rows is multiplied; None leaves it to the library."""
        if not self.known or x.dtype is not self.dtype or x.dim() != 2 or x.stride(1) != 1:
            return None
        key = x.shape[0], activation
        if key not in self._plans:
            rows = 1 << (key[0] - 1).bit_length()
            self._plans[key] = _plan(
                self.device, self.dtype, self.num_out, self.size, rows, activation, self.bias is not None
            )
        return self._plans[key]

    def fused(
        self,
        x: torch.Tensor,
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
            plan = self.plan(x, activation)
            if isinstance(plan, Gemv) and (residual is None or _beside(x, residual)):
                return plan.fused(x, self.weight, self.bias, residual, norm_weight, eps, keep_normed)
        total, normed = None, x
        if norm_weight is not None:
            if residual is None:
                total, normed = x, rms_norm(x, norm_weight, eps)
            else:
                normed, total = add_rms_norm(x, residual, norm_weight, eps)
        if activation is not None and 0 < num_rows <= MAX_ROWS:
            plan = self.plan(normed, activation)
            if plan is not None:
                return plan(normed, self.weight, self.bias), total, normed if keep_normed else None
        y = self(normed)
        return (y if activation is None else activate(y, activation)), total, normed if keep_normed else None


def _bind_fused(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[..., Any]:
    return BoundLinear(weight, bias).fused


@bound_by(BoundLinear)
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K], bias [N] or None -> [T, N]."""
    return BoundLinear(weight, bias)(x)


@bound_by(_bind_fused)
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
    """See BoundLinear."""
    return BoundLinear(weight, bias).fused(
        x, residual=residual, norm_weight=norm_weight, eps=eps, activation=activation, keep_normed=keep_normed
    )


def _beside(x: torch.Tensor, residual: torch.Tensor) -> bool:
    return residual.dtype is x.dtype and residual.shape == x.shape and residual.stride(1) == 1


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
