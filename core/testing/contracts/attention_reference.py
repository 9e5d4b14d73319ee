"""Attention from its definition, in float64: a full softmax over a dense history. No pages, no plans, no kernels."""

from __future__ import annotations

import torch

from core.interfaces.attention import MlaWeights
from core.interfaces.spec import AttentionSpec


def reference_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """One sequence. q [M, Hq, D] are its newest M tokens, k [L, Hkv, D] and v [L, Hkv, Dv] all L tokens.

    Returns [M, Hq, Dv] in float64. Query head h reads KV head h // (Hq / Hkv); the token at position p sees the
    positions max(0, p - window + 1) .. p; a sink is a logit without a value.
    """
    q, k, v = q.cpu().double(), k.cpu().double(), v.cpu().double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("mhd,lhd->hml", q, k) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    key = torch.arange(k.shape[0])
    position = torch.arange(k.shape[0] - q.shape[0], k.shape[0])[:, None]
    seen = key <= position
    if spec.window is not None:
        seen &= key > position - spec.window
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        extra = sinks.cpu().double()[:, None, None].expand(-1, q.shape[0], 1)
        scores = torch.cat((scores, extra), -1)
    odds = torch.softmax(scores, -1)[..., : k.shape[0]]
    return torch.einsum("hml,lhd->mhd", odds, v)


def as_cached(x: torch.Tensor, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """x after it was stored as x / scale in a cache of `dtype`, whose range it is kept within; in float64."""
    limit = torch.finfo(dtype).max
    return (x.cpu().double() / scale).clamp(-limit, limit).float().to(dtype).double() * scale


def reference_mla(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    weights: MlaWeights,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Latent attention of one sequence, keys and values expanded. q_nope [M, H, Dn] and q_rope [M, H, P] are the
    newest M tokens, latent [L, R] and k_rope [L, P] all of them. Returns [M, H, Dv] in float64."""
    key, value, latent = weights.key.cpu().double(), weights.value.cpu().double(), latent.cpu().double()
    k_nope = torch.einsum("hnr,lr->lhn", key, latent)
    v = torch.einsum("hvr,lr->lhv", value, latent)
    shared = k_rope.cpu().double()[:, None].expand(-1, key.shape[0], -1)
    q = torch.cat((q_nope.cpu().double(), q_rope.cpu().double()), -1)
    return reference_attention(q, torch.cat((k_nope, shared), -1), v, spec)
