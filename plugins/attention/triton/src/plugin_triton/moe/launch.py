"""Programmatic dependent launch: a kernel starts while the one before it still drains.

Every kernel of a chain calls `begin` before it reads what an earlier kernel wrote, or writes anything. Since `begin`
lets the next kernel start only after its own wait, whatever a kernel's grandparent wrote is complete when it starts;
that may be read before `begin` (past the L1 cache), so that weights are on their way before the parent is done.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before this one; let the next one start as soon as there is room."""
    if PDL:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


# Whether kernels run in Triton's interpreter, which has no product of bfloat16 numbers.
INTERPRETED = not isinstance(begin, triton.JITFunction)


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether kernels on `device` can be launched this way: NVIDIA, compute capability 9 and above."""
    if device.type != "cuda" or torch.version.hip is not None or INTERPRETED:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


def options(overlap: bool) -> dict[str, Any]:
    """Launch options; other targets than NVIDIA's do not know this one."""
    return {"launch_pdl": True} if overlap else {}


def can_describe(weight: torch.Tensor) -> bool:
    """Whether the tensor memory accelerator can fetch tiles of `weight` [..., K], contiguous: rows begin at 16 bytes."""
    return can_overlap(weight.device) and weight.shape[-1] * weight.element_size() % 16 == 0
