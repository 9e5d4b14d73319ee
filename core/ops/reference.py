"""Plain-PyTorch references of every named operation, for any device.

What lives here: one pure function a name, with few torch calls each (at batch 1 the calls are the cost); those of the
sampler come from `core.ops.sampling`, those of 8-bit activations from `core.ops.quantize`.
What does not: anything device-specific; a hardware or kernel package replaces entries through `core.ops.table`.

Every function takes float32, bfloat16 or float16, returns the dtype of its input unless said otherwise, accepts
zero rows, and changes no argument (but what stores writes the caches, and `qk_norm_rope` may use up its input).
Wrong shapes raise torch's errors: these are called by layers, not by users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from core.ops.quantize import quantize_fp8_group, quantize_fp8_tensor, quantize_fp8_token
from core.ops.sampling import best_token, gumbel_argmax, mask_tokens, penalize, sampling_threshold, token_logprobs

# Below this many elements a joint pass over q and k saves more in calls than its copy costs (measured on a CPU).
_ROPE_JOINT_ELEMENTS = 1 << 15
_GELU = MappingProxyType({"gelu": "none", "gelu_tanh": "tanh"})  # activation of `fused_linear` -> approximation


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K] or what this table's `pack_linear_weight` returned, bias [N] or None -> [T, N]."""
    return F.linear(x, weight, bias)


def pack_linear_weight(weight: torch.Tensor) -> Any:
    """weight [N, K] -> the form that `linear` of the same table likes best. Here: the weight itself."""
    return weight


def fused_linear(
    x: torch.Tensor,
    weight: Any,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    activation: str | None = None,
    keep_normed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`linear` with what stands around it in a decoder layer: sum and RMS norm before, gated activation behind.

    x, residual [T, K]; norm_weight [K]. With a norm the product is of rms_norm(x + residual), or of rms_norm(x) without
    a residual. activation: None, or "silu", "gelu" or "gelu_tanh": weight is [2I, K], gate rows first, and the result
    act(gate) * up. Returns (y [T, N or I]; x + residual, which is x itself without a residual, None without a norm; the
    normed rows [T, K] if keep_normed, else None). What goes from one stage to the next may be rounded or not.

    The weight is what `pack_linear_weight` of the same table returned. Layers call it only where a table has its own;
    otherwise they call the parts.
    """
    total = None
    if norm_weight is not None:
        if residual is None:
            total, x = x, rms_norm(x, norm_weight, eps)
        else:
            x, total = add_rms_norm(x, residual, norm_weight, eps)
    y = linear(x, weight, bias)
    if activation is not None:
        y = silu_and_mul(y) if activation == "silu" else gelu_and_mul(y, _GELU[activation])
    return y, total, x if keep_normed else None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., H] / sqrt(mean(x**2) + eps) * weight [H], statistics in float32."""
    return torch.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, H] -> (rms_norm(x + residual), x + residual)."""
    residual = x + residual
    return torch.rms_norm(residual, weight.shape, weight, eps), residual


def qk_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of each head: x [T, H, D], weight [D]."""
    return torch.rms_norm(x, weight.shape, weight, eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [T, H, D], cos and sin [T, 1, R/2] float32 -> x with the first R dimensions of each head rotated."""
    half = cos.shape[-1]
    wide = x.float()
    if interleaved:
        first, second = wide[..., 0 : 2 * half : 2], wide[..., 1 : 2 * half : 2]
    else:
        first, second = wide[..., :half], wide[..., half : 2 * half]
    turned_first = torch.addcmul(first * cos, second, sin, value=-1)
    turned_second = torch.addcmul(second * cos, first, sin)
    if interleaved:
        parts = [torch.stack((turned_first, turned_second), -1).flatten(-2)]
    else:
        parts = [turned_first, turned_second]
    if 2 * half < x.shape[-1]:
        parts.append(wide[..., 2 * half :])
    return torch.cat(parts, -1).to(x.dtype)


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of the first R dimensions of each head; the others pass through. Computed in float32.

    q [T, Hq, D], k [T, Hk, D], positions [T] int64. cos_sin [P, R] float32: the first R/2 columns are cosines, the
    last R/2 sines. Pairs are (i, i + R/2), or (2i, 2i + 1) with `interleaved`. Returns new (q, k).
    """
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, -1)
    if q.numel() <= _ROPE_JOINT_ELEMENTS and q.shape[-1] == k.shape[-1]:
        turned = _rotate(torch.cat((q, k), 1), cos, sin, interleaved)
        num_heads = q.shape[1]
        return turned[:, :num_heads], turned[:, num_heads:]
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def qk_norm_rope(
    qkv: torch.Tensor,
    heads: tuple[int, int, int],
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`qk_norm` of the query and of the key heads (where there are weights [D]), then `rope` of both.

    qkv [T, sum(heads), D]: `heads` counts query, key and value heads, in this order. Returns (q, k, v), each
    [T, H, D]; v as it stands. An implementation may write to qkv and return views of it, so a caller gives it away.
    """
    q, k, v = qkv.split(heads, 1)
    if q_weight is not None:
        q = qk_norm(q, q_weight, eps)
    if k_weight is not None:
        k = qk_norm(k, k_weight, eps)
    q, k = rope(q, k, cos_sin, positions, interleaved=interleaved)
    return q, k, v


def qk_norm_rope_store(
    qkv: torch.Tensor,
    heads: tuple[int, int, int],
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    interleaved: bool = False,
) -> torch.Tensor:
    """`qk_norm_rope`, then `store_kv` of the keys and values. Returns the queries [T, H, D]; qkv may be used up."""
    q, k, v = qk_norm_rope(qkv, heads, q_weight, k_weight, eps, cos_sin, positions, interleaved=interleaved)
    store_kv(k, v, k_cache, v_cache, slots)
    return q


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2I] -> silu(gate_up[:, :I]) * gate_up[:, I:], [T, I]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def gelu_and_mul(gate_up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gate_up [T, 2I] -> gelu(gate_up[:, :I]) * gate_up[:, I:], [T, I]. approximate: "none" or "tanh"."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate=approximate).mul_(up)


def topk_softmax(router_logits: torch.Tensor, k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """router_logits [T, E] -> (weights [T, k] float32, ids [T, k] int64), heaviest expert first.

    Weights are of the softmax over all experts; `renormalize` makes each row sum to 1.
    """
    if renormalize:  # the same as softmax, top-k and division by the sum, without the pass over all experts
        logits, ids = router_logits.float().topk(k, -1)
        return logits.softmax(-1), ids
    weights, ids = router_logits.softmax(-1, dtype=torch.float32).topk(k, -1)
    return weights, ids


def route_topk(
    router_logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    *,
    scoring: str,
    renormalize: bool,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "top2",
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert choice with what `topk_softmax` lacks. router_logits [T, E] -> (weights [T, k] float32, ids [T, k] int64).

    Scores are "softmax" or "sigmoid" of the logits, in float32. bias [E] float32 is added for the choice alone
    (DeepSeek-V3, arXiv:2412.19437, section 2.1.2). With num_groups > 1 experts are chosen among the `topk_groups`
    groups of neighbours with the best group score: the sum of the two best of its experts ("top2"), or the best
    ("max"). Weights are the scores of the chosen; `renormalize` makes each row sum to 1, then `scale` multiplies them.
    The order within a row is not defined.
    """
    logits = router_logits.float()
    scores = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)
    choice = scores if bias is None else scores + bias
    if num_groups > 1:
        grouped = choice.unflatten(1, (num_groups, choice.shape[1] // num_groups))
        best = grouped.topk(2, -1).values.sum(-1) if group_score == "top2" else grouped.amax(-1)
        kept = best.topk(topk_groups, -1, sorted=False).indices
        left_out = torch.ones_like(best, dtype=torch.bool).scatter_(1, kept, False)
        choice = grouped.masked_fill(left_out.unsqueeze(-1), float("-inf")).flatten(1)
    ids = choice.topk(k, -1, sorted=False).indices
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)  # all sigmoids may be 0
    return (weights if scale == 1.0 else weights * scale), ids


def store_kv(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write k [T, H, D] and v [T, H, Dv] into rows `slots` [T] of k_cache [S, H, D] and v_cache [S, H, Dv].

    Slots are int64 or int32, as the attention backend asked for. Those of padding rows may repeat; which of them is
    kept is not defined.
    """
    slots = slots.long()
    k_cache.index_copy_(0, slots, k.to(k_cache.dtype))
    v_cache.index_copy_(0, slots, v.to(v_cache.dtype))


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ids [T] int64, weight [V, H] -> [T, H]."""
    return weight.index_select(0, ids)


REFERENCES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        op.__name__: op
        for op in (
            linear,
            pack_linear_weight,
            fused_linear,
            rms_norm,
            add_rms_norm,
            qk_norm,
            rope,
            qk_norm_rope,
            qk_norm_rope_store,
            silu_and_mul,
            gelu_and_mul,
            topk_softmax,
            route_topk,
            store_kv,
            embedding,
            best_token,
            gumbel_argmax,
            sampling_threshold,
            penalize,
            mask_tokens,
            token_logprobs,
            quantize_fp8_tensor,
            quantize_fp8_token,
            quantize_fp8_group,
        )
    }
)
