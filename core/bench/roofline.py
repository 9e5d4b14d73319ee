"""The least time that a workload can take on a device: bytes and operations over measured ceilings."""

from __future__ import annotations

from dataclasses import dataclass

from core.bench.ceilings import Ceilings
from core.bench.counting import ModelCounts
from core.bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Limit:
    """Seconds of the prompts and of the decode steps after them, if each step were bound by nothing but the memory or
    the matrix unit. bound: what most of that time goes to, "memory" or "compute"."""

    prefill_s: float
    decode_s: float
    bound: str

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s


def limit_of(work: Workload, counts: ModelCounts, ceilings: Ceilings, chunk_tokens: int) -> Limit:
    """All prompts first, in steps of at most `chunk_tokens`, then one decode step of all requests for each further
    token. A common prefix is cached already, and a step need not read it more than once for all requests."""
    spent = {"memory": 0.0, "compute": 0.0}
    compute = ceilings.ops_per_s(counts.weight_bits)

    def step(num_bytes: float, ops: float) -> float:
        memory_s, compute_s = num_bytes / ceilings.copy_bytes_per_s, ops / compute
        spent["memory" if memory_s > compute_s else "compute"] += (longest := max(memory_s, compute_s))
        return longest

    rows = work.num_requests
    shared = counts.cache_bytes(work.prefix_len)

    def reads(context: int) -> float:
        return shared + rows * (counts.cache_bytes(context) - shared)

    total = rows * work.input_len
    attention = rows * counts.attention_ops(work.prompt_len, work.input_len)
    num_steps = -(-total // chunk_tokens)
    prefill_s = 0.0
    for index in range(num_steps):
        tokens = min(chunk_tokens, total - index * chunk_tokens)
        share = tokens / total
        sampled = max(1, round(rows * share))
        ops = counts.weight_ops(tokens, sampled) + attention * share
        prefill_s += step(counts.weight_bytes(tokens, sampled) + reads(work.prompt_len) * share, ops)
    decode_s = 0.0
    for done in range(1, work.output_len):
        context = work.prompt_len + done
        num_bytes = counts.weight_bytes(rows, rows) + reads(context)
        decode_s += step(num_bytes, counts.weight_ops(rows, rows) + rows * counts.attention_ops(context))
    return Limit(prefill_s, decode_s, max(spent, key=lambda what: spent[what]))


def limit_figure(work: Workload, limit: Limit) -> float | None:
    """The workload's figure at that limit; None where it is no matter of bytes and operations."""
    if work.figure == "start_s":
        return None
    if work.figure == "ms_per_token":
        return limit.decode_s / max(1, work.output_len - 1) * 1e3
    return work.rate(limit.total_s)
