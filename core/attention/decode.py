"""Rows with one new token: gathered keys, one call a block, shared prefixes read once."""

from __future__ import annotations

import torch

from core.attention.kernels import apply_sinks, attend, attend_lse, merge
from core.attention.narrow import Rows
from core.attention.plan import DecodeBlock, SharedPrefix, StepPlan
from core.interfaces.spec import AttentionSpec


def decode_rows(
    q: torch.Tensor,
    k_buffer: Rows,
    v_buffer: Rows,
    plan: StepPlan,
    spec: AttentionSpec,
    num_kv_heads: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """q [N, Hq, D] of the decode rows, buffers [S, Hkv * D] and [S, Hkv * Dv] -> [N, Hq, Dv].

    The queries that share a KV head are rows of one problem, so that keys are neither repeated nor read twice. Both
    buffers may be the same tensor: then it is read once.
    """
    num_rows, num_heads, head_dim = q.shape
    group = num_heads // num_kv_heads
    q = q.reshape(num_rows, num_kv_heads, group, head_dim)
    if not plan.shared and sinks is None and spec.softcap is None:
        if len(plan.decodes) == 1:
            out = _plain_block(q, k_buffer, v_buffer, plan.decodes[0], spec)
        else:
            out = q.new_empty(num_rows, num_kv_heads, group, spec.v_head_dim)
            for block in plan.decodes:
                assert block.rows is not None  # several blocks: none holds all rows
                part = _plain_block(q.index_select(0, block.rows), k_buffer, v_buffer, block, spec)
                out.index_copy_(0, block.rows, part)
    else:
        out, lse = _own_parts(q, k_buffer, v_buffer, plan, spec)
        for prefix in plan.shared:
            ours = (out, lse)
            if prefix.rows is not None:
                ours = (out.index_select(0, prefix.rows), lse.index_select(0, prefix.rows))
            joined = merge(ours, _shared_part(q, k_buffer, v_buffer, prefix, spec))
            if prefix.rows is None:
                out, lse = joined
            else:
                out.index_copy_(0, prefix.rows, joined[0])
                lse.index_copy_(0, prefix.rows, joined[1])
        if sinks is not None:
            out = apply_sinks(out, lse, sinks.view(num_kv_heads, group))
    return out.reshape(num_rows, num_heads, spec.v_head_dim)


def _gather(k_buffer: Rows, v_buffer: Rows, block: DecodeBlock, num_kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [B, Hkv, L, D] and values [B, Hkv, L, Dv] of a block; views of the buffers for one contiguous row."""
    shape = (block.num_rows, block.length, num_kv_heads, -1)
    k = block.keys.rows(k_buffer).view(shape).transpose(1, 2)
    if v_buffer is k_buffer:
        return k, k
    return k, block.keys.rows(v_buffer).view(shape).transpose(1, 2)


def _plain_block(
    q: torch.Tensor, k_buffer: Rows, v_buffer: Rows, block: DecodeBlock, spec: AttentionSpec
) -> torch.Tensor:
    k, v = _gather(k_buffer, v_buffer, block, q.shape[1])
    return attend(q, k, v, spec.scale, block.mask)


def _own_parts(
    q: torch.Tensor, k_buffer: Rows, v_buffer: Rows, plan: StepPlan, spec: AttentionSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row sees beyond a shared prefix: out [N, Hkv, G, Dv] and lse [N, Hkv, G]."""
    out = q.new_empty(*q.shape[:-1], spec.v_head_dim)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    for block in plan.decodes:
        mine = q if block.rows is None else q.index_select(0, block.rows)
        k, v = _gather(k_buffer, v_buffer, block, q.shape[1])
        part = attend_lse(mine, k, v, spec.scale, block.mask, softcap=spec.softcap)
        if block.rows is None:
            return part
        out.index_copy_(0, block.rows, part[0])
        lse.index_copy_(0, block.rows, part[1])
    return out, lse


def _shared_part(
    q: torch.Tensor, k_buffer: Rows, v_buffer: Rows, prefix: SharedPrefix, spec: AttentionSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """All queries of the prefix's rows against its keys, which are read once: (out [B, Hkv, G, Dv], lse)."""
    if prefix.rows is not None:
        q = q.index_select(0, prefix.rows)
    num_rows, num_kv_heads, group, head_dim = q.shape
    shape = (1, prefix.keys.count, num_kv_heads, -1)
    k = prefix.keys.rows(k_buffer).view(shape).transpose(1, 2)
    v = k if v_buffer is k_buffer else prefix.keys.rows(v_buffer).view(shape).transpose(1, 2)
    queries = q.transpose(0, 1).reshape(1, num_kv_heads, num_rows * group, head_dim)
    out, lse = attend_lse(queries, k, v, spec.scale, softcap=spec.softcap)
    return (
        out.reshape(num_kv_heads, num_rows, group, -1).transpose(0, 1),
        lse.reshape(num_kv_heads, num_rows, group).transpose(0, 1),
    )
