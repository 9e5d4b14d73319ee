"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): what is cached of a token is one row [R + P], its
latent and the rotated key part that all heads share.

Two ways to attend give the same numbers but for rounding. Absorbed: the up-projections of keys and values are folded
into query and output, and all heads attend to the cached rows themselves, as to one KV head of R + P dims. Expanded:
keys and values of every head are made from the latents first. Per query absorbed attention reads and computes more
(R + P dims a head instead of head_dim), but expanding costs R * (Dn + Dv) a head and cached token whatever the number
of queries. So decodes are absorbed, fresh prompts expanded, and a chunk with a history goes the cheaper way.

What lives here: the choice, and the expanded way. What does not: the absorbed way's attention, which is `decode` and
`prefill` with one KV head whose values are its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from core.attention.kernels import attend, attend_lse, merge
from core.attention.narrow import Rows
from core.attention.plan import Keys, Planner, Rule, StepPlan
from core.interfaces.attention import AttentionConfig, MlaWeights
from core.interfaces.batch import BatchLayout
from core.interfaces.spec import AttentionSpec

# Keys and values of a history are made and attended this many bytes at a time: long histories need no more memory.
_EXPAND_BYTES = 32 << 20
_MIN_EXPAND_TOKENS = 256


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Sizes of one layer. rank R, rope_dim P, nope_dim Dn, v_dim Dv; num_heads: of this rank."""

    num_heads: int
    rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int

    @classmethod
    def of(cls, spec: AttentionSpec, num_heads: int) -> LatentShape:
        return cls(num_heads, spec.latent_dim, spec.rope_dim, spec.head_dim - spec.rope_dim, spec.v_head_dim)

    @property
    def row(self) -> int:
        """Elements cached of a token."""
        return self.rank + self.rope_dim

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def width(self) -> int:
        """Of expanded keys and values, padded to one size, because the fused kernels that return a log-sum-exp want
        them equal."""
        return max(self.head_dim, self.v_dim)

    def absorbs(self, num_new: int, history: int) -> bool:
        """Whether absorbed attention of `num_new` tokens after `history` cached ones takes fewer multiplications."""
        pairs = num_new * history + num_new * num_new // 2
        return pairs * 2 * (self.row - self.width) < history * self.rank * (self.nope_dim + self.v_dim)


@dataclass(frozen=True, slots=True)
class ExpandedSequence:
    """Token rows first_row..last_row of a sequence, attending causally among themselves and to all of `history`."""

    first_row: int
    last_row: int
    history: tuple[Keys, ...]


@dataclass(frozen=True, slots=True)
class AbsorbedSequence:
    """Token rows first_row..last_row of a sequence with a history; plan counts rows from first_row."""

    first_row: int
    last_row: int
    plan: StepPlan


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """decodes, then the prefills that go either way: together every token row."""

    decodes: StepPlan
    absorbed: tuple[AbsorbedSequence, ...]
    expanded: tuple[ExpandedSequence, ...]


class LatentPlanner:
    """Builds a step's `LatentPlan`. merges: whether a chunk may be attended apart from its history here."""

    def __init__(self, config: AttentionConfig, planner: Planner, spec: AttentionSpec, *, merges: bool) -> None:
        self.shape = LatentShape.of(spec, config.num_heads)
        self._planner = planner
        self._rule = Rule(None, masked=False, merges=merges)
        token_bytes = self.shape.num_heads * 2 * self.shape.width * config.dtype.itemsize
        self._block = max(_MIN_EXPAND_TOKENS, _EXPAND_BYTES // token_bytes)

    def plan(self, layout: BatchLayout) -> LatentPlan:
        decodes = self._planner.plan_decodes(layout, self._rule)
        absorbed: list[AbsorbedSequence] = []
        expanded: list[ExpandedSequence] = []
        for i in range(decodes.num_decodes, layout.num_seqs):
            first, num_new = int(layout.cu_q_lens[i]), int(layout.q_lens[i])
            history = int(layout.seq_lens[i]) - num_new
            if history and (not self._rule.merges or self.shape.absorbs(num_new, history)):
                plan = self._planner.plan_prefills(layout, self._rule, [i])
                absorbed.append(AbsorbedSequence(first, first + num_new, _from_row(plan, first)))
            elif num_new:
                pages = layout.page_table[i]
                blocks = tuple(
                    self._planner.keys(pages, start, min(start + self._block, history))
                    for start in range(0, history, self._block)
                )
                expanded.append(ExpandedSequence(first, first + num_new, blocks))
        return LatentPlan(decodes, tuple(absorbed), tuple(expanded))


def _from_row(plan: StepPlan, first: int) -> StepPlan:
    """The same with rows counted from `first`."""
    masked = tuple(replace(b, first_row=b.first_row - first, last_row=b.last_row - first) for b in plan.masked)
    causal = tuple(replace(s, first_row=s.first_row - first, last_row=s.last_row - first) for s in plan.causal)
    return replace(plan, masked=masked, causal=causal)


def absorbed_queries(q_nope: torch.Tensor, q_rope: torch.Tensor, weights: MlaWeights) -> torch.Tensor:
    """q_nope [N, H, Dn], q_rope [N, H, P] -> [N, H, R + P]: the queries of cached rows."""
    latent = torch.bmm(q_nope.transpose(0, 1), weights.key).transpose(0, 1)
    return torch.cat((latent, q_rope), -1)


def absorbed_values(rows: torch.Tensor, weights: MlaWeights) -> torch.Tensor:
    """rows [N, H, R + P], weighted sums of cached rows -> [N, H, Dv]."""
    rank = weights.value.shape[-1]
    return torch.bmm(rows[..., :rank].transpose(0, 1), weights.value.transpose(1, 2)).transpose(0, 1)


def expand(rows: torch.Tensor, weights: MlaWeights, shape: LatentShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Cached rows [L, R + P] -> keys and values [1, H, L, width], zero beyond head_dim and v_dim."""
    length, heads = rows.shape[0], shape.num_heads
    latent = rows[:, : shape.rank]
    keys = rows.new_zeros(1, heads, length, shape.width)
    values = rows.new_zeros(1, heads, length, shape.width)
    nope, end = shape.nope_dim, shape.head_dim
    keys[0, :, :, :nope] = torch.matmul(latent, weights.key.flatten(0, 1).t()).view(length, heads, nope).transpose(0, 1)
    keys[0, :, :, nope:end] = rows[:, shape.rank :]
    wide = torch.matmul(latent, weights.value.flatten(0, 1).t()).view(length, heads, shape.v_dim)
    values[0, :, :, : shape.v_dim] = wide.transpose(0, 1)
    return keys, values


def expanded_rows(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    rows: torch.Tensor,
    buffer: Rows,
    out: torch.Tensor,
    sequences: Sequence[ExpandedSequence],
    weights: MlaWeights,
    shape: LatentShape,
    scale: float,
) -> None:
    """Fill the rows of out [T, H, Dv] that belong to `sequences`. rows [T, R + P]: this step's, as they were cached."""
    for sequence in sequences:
        first, last = sequence.first_row, sequence.last_row
        q = q_nope.new_zeros(1, shape.num_heads, last - first, shape.width)
        q[0, :, :, : shape.nope_dim] = q_nope[first:last].transpose(0, 1)
        q[0, :, :, shape.nope_dim : shape.head_dim] = q_rope[first:last].transpose(0, 1)
        keys, values = expand(rows[first:last], weights, shape)
        if not sequence.history:
            result = attend(q, keys, values, scale, causal=True)
        else:
            part = attend_lse(q, keys, values, scale, causal=True)
            for block in sequence.history:
                part = merge(part, attend_lse(q, *expand(block.rows(buffer), weights, shape), scale))
            result = part[0]
        out[first:last] = result[0, :, :, : shape.v_dim].transpose(0, 1)
