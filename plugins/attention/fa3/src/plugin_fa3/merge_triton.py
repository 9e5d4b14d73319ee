"""The Triton kernel behind `merge_into`."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _merge(
    out, lse, common, common_lse, skipped, lse_stride, common_stride, num_heads,
    width: tl.constexpr, heads: tl.constexpr, dims: tl.constexpr,
):  # fmt: skip
    """A row a program; rows without common keys return at once."""
    row = tl.program_id(0)
    if tl.load(skipped + row) > 0:
        head, at = tl.arange(0, heads), tl.arange(0, dims)
        there = head < num_heads
        ours = tl.load(lse + head * lse_stride + row, mask=there, other=0.0)
        theirs = tl.load(common_lse + head * common_stride + row, mask=there, other=0.0)
        share = 1.0 / (1.0 + tl.exp(ours - theirs))
        place = (row * num_heads + head)[:, None] * width + at[None]
        mask = there[:, None] & (at < width)[None]
        own = tl.load(out + place, mask=mask, other=0.0).to(tl.float32)
        other = tl.load(common + place, mask=mask, other=0.0).to(tl.float32)
        joined = other * share[:, None] + own * (1.0 - share)[:, None]
        tl.store(out + place, joined.to(out.dtype.element_ty), mask=mask)


def merge(
    out: torch.Tensor, lse: torch.Tensor, common: torch.Tensor, common_lse: torch.Tensor, skipped: torch.Tensor
) -> None:
    """As `merge_into`; out and common are contiguous, and so are the columns of lse and common_lse."""
    num_rows, num_heads, width = common.shape
    _merge[(num_rows,)](
        out, lse, common, common_lse, skipped, lse.stride(0), common_lse.stride(0), num_heads, width,
        triton.next_power_of_2(num_heads), triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
