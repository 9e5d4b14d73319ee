"""Launching the kernels of one layer as a chain in which each starts while the one before still drains.

Beside the rules of `plugin_triton.dependent`, kernels here let the next one start only after their own wait. So what a
kernel's grandparent wrote is complete when it starts, and may be read before `begin`, past the L1 cache: `gemv` has
weights of the chosen experts on their way while their inputs are still computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugin_triton.dependent import dependent, release, wait

# ruff: noqa: N803


@triton.jit
def begin(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Before the first read of what an earlier kernel wrote, and the first write."""
    wait(PDL)
    release(PDL)


def can_describe(weight: torch.Tensor) -> bool:
    """Whether the tensor memory accelerator can fetch tiles of `weight` [..., K], which is contiguous."""
    return dependent(weight.device) and weight.shape[-1] * weight.element_size() % 16 == 0
