"""Gated activations: act(gate) * up."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language import math

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch

# ruff: noqa: N803


@triton.jit
def gate(x, ACT: tl.constexpr):  # type: ignore[no-untyped-def]
    """act(x), float32; ACT: "silu", "gelu" or "gelu_tanh"."""
    if ACT == "silu":
        return x * tl.sigmoid(x)
    if ACT == "gelu":
        return 0.5 * x * (1.0 + math.erf(x * 0.7071067811865476))
    # tanh(u) = 2 sigmoid(2u) - 1
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)


@triton.jit
def gate_kernel(  # type: ignore[no-untyped-def]
    x, y, STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """x [T, 2 * SIZE], rows STRIDE apart -> y [T, SIZE], contiguous. Grid (T, cdiv(SIZE, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = cols < SIZE
    release(PDL)
    wait(PDL)
    start = x + row * STRIDE
    a = tl.load(start + cols, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(start + SIZE + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + row * SIZE + cols, (gate(a, ACT) * b).to(y.dtype.element_ty), mask=ok)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2I] -> [T, I]."""
    y = _activated(gate_up, "silu")
    return reference.silu_and_mul(gate_up) if y is None else y


def gelu_and_mul(gate_up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gate_up [T, 2I] -> [T, I]. approximate: "none" or "tanh"."""
    y = _activated(gate_up, "gelu_tanh" if approximate == "tanh" else "gelu")
    return reference.gelu_and_mul(gate_up, approximate) if y is None else y


def activate(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """gate_up [T, 2I] of a type in FLOATS, contiguous -> act(gate) * up [T, I]; activation: "silu", "gelu" or
    "gelu_tanh"."""
    y = _activated(gate_up, activation)
    assert y is not None
    return y


def _activated(gate_up: torch.Tensor, activation: str) -> torch.Tensor | None:
    """None if the kernel does not take it."""
    shape = gate_up.shape
    plan = _plan(gate_up.dtype, gate_up.device, shape[1:], gate_up.stride(), activation)
    if plan is None:
        return None
    launch, blocks, size, number = plan
    num_rows = shape[0]
    y = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows and size:
        launch.start(number, num_rows, blocks, 1, gate_up, y)
    return y


@functools.cache
def _plan(
    dtype: torch.dtype, device: torch.device, width: tuple[int, ...], strides: tuple[int, ...], activation: str
) -> tuple[Launch, int, int, int] | None:
    """(the launch, programs of a row, columns of the result, the device's number)"""
    if len(width) != 1 or strides[1] != 1 or width[0] % 2 or dtype not in FLOATS:
        return None
    size = width[0] // 2
    block = min(1024, triton.next_power_of_2(size))
    pdl = dependent(device)
    launch = Launch(gate_kernel, (strides[0], size, block, activation, pdl), num_warps=max(1, block // 256), pdl=pdl)
    return launch, -(-size // block), size, device.index or 0
