"""Dense attention over [B, H, M, D] tensors, with or without the log-sum-exp that lets parts be merged.

What lives here: pure functions, no pages and no plans. What does not: anything that knows a KV cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """q [B, H, M, D], k [B, H, L, D], v [B, H, L, Dv] -> [B, H, M, Dv].

    mask: additive, broadcastable to [B, H, M, L], in q's dtype. causal: row i sees keys 0..i (needs M == L); not
    together with a mask.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def attend_lse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `attend`, and also the log-sum-exp [B, H, M] float32 of the scaled (and capped) scores."""
    if softcap is None and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        # torch's CPU kernel returns the log-sum-exp anyway; the public function drops it.
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        out, lse = flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
        return out, lse.float()
    return attend_plain(q, k, v, scale, mask, causal, softcap)


def attend_plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix products and softmax in float32, for any device, any head sizes and soft caps. Returns (out, lse)."""
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores + mask
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores = scores.masked_fill_(hidden, float("-inf"))
    lse = torch.logsumexp(scores, -1)
    weights = scores.sub_(lse.unsqueeze(-1)).exp_()
    return torch.matmul(weights, v.float()).to(q.dtype), lse


def merge(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join attention over two disjoint sets of keys: each (out [..., Dv], lse [...]) -> the same for the union."""
    share = torch.sigmoid(second[1] - first[1]).unsqueeze(-1)
    out = torch.lerp(first[0].float(), second[0].float(), share).to(first[0].dtype)
    return out, torch.logaddexp(first[1], second[1])


def apply_sinks(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Let an extra logit a head join the denominator: out [..., Dv], lse [...], sinks broadcastable to lse."""
    return (out * torch.sigmoid(lse - sinks.float()).unsqueeze(-1)).to(out.dtype)
