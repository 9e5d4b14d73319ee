"""Rows of sequences with several new tokens: fresh prompts, chunks with a history, verification."""

from __future__ import annotations

import torch

from core.attention.kernels import apply_sinks, attend, attend_lse, merge
from core.attention.narrow import Rows
from core.attention.plan import StepPlan
from core.interfaces.spec import AttentionSpec


def _heads_first(x: torch.Tensor, num_kv_heads: int, group: int) -> torch.Tensor:
    """x [M, Hkv * D] or [M, Hkv, D] -> a view [Hkv, G, M, D] in which the G query heads share one key head."""
    x = x.view(x.shape[0], num_kv_heads, -1).transpose(0, 1)
    return x.unsqueeze(1).expand(-1, group, -1, -1)


def prefill_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_buffer: Rows,
    v_buffer: Rows,
    out: torch.Tensor,
    plan: StepPlan,
    spec: AttentionSpec,
    num_kv_heads: int,
    sinks: torch.Tensor | None,
) -> None:
    """Fill the rows of out [T, Hq, Dv] that belong to prefills. q [T, Hq, D]; k, v [T, Hkv, D | Dv] are this step's.

    KV heads are the batch dimension and the query heads of a group its heads, so that nothing is repeated in memory.
    """
    group = q.shape[1] // num_kv_heads
    grouped_sinks = None if sinks is None else sinks.view(num_kv_heads, group, 1)

    def write(first: int, last: int, part: torch.Tensor) -> None:
        """part [Hkv, G, M, Dv]"""
        out[first:last].unflatten(1, (num_kv_heads, group)).copy_(part.permute(2, 0, 1, 3))

    for sequence in plan.causal:
        first, last = sequence.first_row, sequence.last_row
        queries = q[first:last].unflatten(1, (num_kv_heads, group)).permute(1, 2, 0, 3)
        own_k, own_v = (
            _heads_first(k[first:last], num_kv_heads, group),
            _heads_first(v[first:last], num_kv_heads, group),
        )
        if sequence.history is None and sinks is None:
            write(first, last, attend(queries, own_k, own_v, spec.scale, causal=True))
            continue
        part = attend_lse(queries, own_k, own_v, spec.scale, causal=True)
        if sequence.history is not None:
            old_k = _heads_first(sequence.history.rows(k_buffer), num_kv_heads, group)
            old_v = old_k
            if v_buffer is not k_buffer:
                old_v = _heads_first(sequence.history.rows(v_buffer), num_kv_heads, group)
            part = merge(part, attend_lse(queries, old_k, old_v, spec.scale))
        write(first, last, part[0] if grouped_sinks is None else apply_sinks(*part, grouped_sinks))

    for block in plan.masked:
        first, last = block.first_row, block.last_row
        queries = q[first:last].unflatten(1, (num_kv_heads, group)).permute(1, 2, 0, 3)
        keys = _heads_first(block.keys.rows(k_buffer), num_kv_heads, group)
        values = keys if v_buffer is k_buffer else _heads_first(block.keys.rows(v_buffer), num_kv_heads, group)
        if grouped_sinks is None and spec.softcap is None:
            write(first, last, attend(queries, keys, values, spec.scale, block.mask))
            continue
        part = attend_lse(queries, keys, values, spec.scale, block.mask, softcap=spec.softcap)
        write(first, last, part[0] if grouped_sinks is None else apply_sinks(*part, grouped_sinks))
