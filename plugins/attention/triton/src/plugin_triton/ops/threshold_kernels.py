"""Kernels of `threshold` that read whole rows: maxima of groups, masses."""

from __future__ import annotations

import triton
import triton.language as tl

from plugin_triton.dependent import release, wait
from plugin_triton.ops.threshold_steps import base_of, rough_weight, top_of

# ruff: noqa: N803
_NEG_INF = tl.constexpr(float("-inf"))


@triton.jit(do_not_specialize=["splits", "each"])
def maxima_kernel(  # type: ignore[no-untyped-def]
    scaled, maxima, tops, splits, each, STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """maxima [R, cdiv(SIZE, GROUP)]: the largest of each GROUP columns; tops [R, splits]: of each part of a row.
    Grid (R, splits)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    groups: tl.constexpr = (SIZE + GROUP - 1) // GROUP
    inside: tl.constexpr = BLOCK // GROUP
    top = tl.full([inside], _NEG_INF, tl.float32)
    release(PDL)
    wait(PDL)
    for index in range(each):
        first = (split * each + index) * BLOCK
        cols = first + tl.arange(0, inside)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_NEG_INF)
        found = tl.max(x, axis=1)
        group = first // GROUP + tl.arange(0, inside)
        tl.store(maxima + row * groups + group, found, mask=group < groups)
        top = tl.maximum(top, found)
    tl.store(tops + row * splits + split, tl.max(top, axis=0))


@triton.jit(do_not_specialize=["splits", "each"])
def mass_kernel(  # type: ignore[no-untyped-def]
    scaled, top_k, top_p, tops, masses, splits, each, STRIDE: tl.constexpr, SIZE: tl.constexpr,
    LANES: tl.constexpr, SHIFT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """masses [R, splits, 2] int64: sums of `rough_weight` of each part of a row, of rows with top-p and without top-k.
    Grid (R, splits)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    release(PDL)
    wait(PDL)
    if (tl.load(top_k + row) == 0) & (tl.load(top_p + row) < 1.0):
        base = base_of(top_of(tops, row, splits))
        large, small = tl.zeros([LANES], tl.int64), tl.zeros([LANES], tl.int64)
        for index in range(each):
            cols = (split * each + index) * LANES + tl.arange(0, LANES)
            x = tl.load(scaled + row * STRIDE + cols, mask=cols < SIZE, other=_NEG_INF)
            first, second = rough_weight(x, base, SHIFT)
            large += first
            small += second
        at = masses + (row * splits + split) * 2
        tl.store(at, tl.sum(large, axis=0))
        tl.store(at + 1, tl.sum(small, axis=0))
