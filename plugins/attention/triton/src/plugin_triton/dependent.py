"""Programmatic dependent launch: a kernel may start while the one before it still runs (NVIDIA, compute capability 9.0
and later; PTX: griddepcontrol).

Rules that every kernel here keeps, with `PDL` a tl.constexpr that is true only where the launch asks for it:
- `wait(PDL)` comes before the first read of anything that a kernel may have written, and before the first write. A grid
  ends only when all of its programs did, and each waits for the grid before, so what was written two kernels ago is
  complete too, and a buffer that the allocator gave again is not overwritten while it is still read.
- Before it only constants may be read: weights.
- `release(PDL)` lets the next kernel's programs take what is free on the chip. They wait for this grid themselves, so
  it may come at any time; early is good.
Kernels that know nothing of this start when the one before has ended, as ever.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait(PDL: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Wait until the kernels before this one have ended."""
    if PDL:
        gdc_wait()


@triton.jit
def release(PDL: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Let the kernel after this one start."""
    if PDL:
        gdc_launch_dependents()


@functools.cache
def dependent(device: torch.device) -> bool:
    """Whether kernels on `device` are launched that way."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)
