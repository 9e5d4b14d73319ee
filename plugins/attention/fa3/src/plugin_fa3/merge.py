"""Join attention over common keys and over a row's own into one result."""

from __future__ import annotations

import torch

from plugin_fa3.store import has_triton


def merge_into(
    out: torch.Tensor, lse: torch.Tensor, common: torch.Tensor, common_lse: torch.Tensor, skipped: torch.Tensor
) -> None:
    """out [T, H, D] over own keys becomes that over all keys. common [T, H, D]: over common keys. lse, common_lse
    [H, T] float32. skipped [T] int32: rows with 0 have no common keys and stay as they are."""
    if out.device.type == "cuda" and has_triton():
        from plugin_fa3.merge_triton import merge

        merge(out, lse, common, common_lse, skipped)
        return
    share = torch.sigmoid(common_lse - lse).t().unsqueeze(-1)
    joined = common.float() * share + out.float() * (1 - share)
    out.copy_(torch.where((skipped > 0)[:, None, None], joined.to(out.dtype), out))
