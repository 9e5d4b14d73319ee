"""Attention the long way, in float64, and a small world of sequences over pages to feed a backend with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, sinks: torch.Tensor | None
) -> torch.Tensor:
    """q [M, Hq, D] are the newest M of L tokens, k [L, Hkv, D], v [L, Hkv, Dv] -> [M, Hq, Dv], float64, one by one."""
    q, k, v = q.double(), k.double(), v.double()
    num_new, num_heads, _ = q.shape
    group = num_heads // k.shape[1]
    out = torch.empty(num_new, num_heads, v.shape[-1], dtype=torch.float64)
    for row in range(num_new):
        position = k.shape[0] - num_new + row
        first = 0 if spec.window is None else max(0, position - spec.window + 1)
        for head in range(num_heads):
            scores = k[first : position + 1, head // group] @ q[row, head] * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            odds = scores.exp()
            total = odds.sum() + (sinks[head].double().exp() if sinks is not None else 0)
            out[row, head] = (odds / total) @ v[first : position + 1, head // group]
    return out


def make_config(
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    v_head_dim: int = 0,
    page_size: int = 4,
    num_pages: int = 64,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AttentionConfig:
    spec = AttentionSpec(
        num_heads, num_kv_heads, head_dim, 1 / math.sqrt(head_dim), v_head_dim, window, softcap, has_sinks
    )
    kind = StateKind.FULL if window is None else StateKind.SLIDING_WINDOW
    group = CacheGroupSpec("kv", kind, (3,), num_kv_heads, head_dim, spec.v_head_dim, window)
    return AttentionConfig(
        group, {3: spec}, num_heads, num_kv_heads, page_size, num_pages, dtype, torch.device("cpu"), 64, 4096, 4096
    )


@dataclass
class Sequence:
    pages: list[int] = field(default_factory=list)
    k: list[torch.Tensor] = field(default_factory=list)
    v: list[torch.Tensor] = field(default_factory=list)


class World:
    """Sequences, their pages and a backend. The KV memory starts as not-a-number everywhere."""

    def __init__(self, backend: type[AttentionBackend], config: AttentionConfig, seed: int = 0) -> None:
        self.config = config
        self.spec = config.layers[3]
        self.backend = backend(config, PluginContext())
        self.kv = self.backend.allocate()
        for buffer in self.kv[3]:
            buffer.fill_(float("nan"))
        self.generator = torch.Generator().manual_seed(seed)
        numbers = np.random.default_rng(seed).permutation(np.arange(1, config.num_pages))
        self.free = [int(page) for page in numbers]
        self.sequences: list[Sequence] = []
        self.sinks = self.random(config.num_heads) if self.spec.has_sinks else None

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.config.dtype)

    def new(self) -> int:
        self.sequences.append(Sequence())
        return len(self.sequences) - 1

    def fork(self, parent: int, num_pages: int) -> int:
        """A sequence that begins with the first `num_pages` full pages of another."""
        source, tokens = self.sequences[parent], num_pages * self.config.page_size
        assert tokens <= len(source.k)
        self.sequences.append(Sequence(source.pages[:num_pages], source.k[:tokens], source.v[:tokens]))
        return len(self.sequences) - 1

    def step(
        self, work: list[tuple[int, int]], *, padding_rows: int = 0, stored_before: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run (sequence, number of new tokens) pairs, decodes first. Returns (output, float64 oracle)."""
        size, num_tokens = self.config.page_size, sum(count for _, count in work)
        q = self.random(num_tokens + padding_rows, self.config.num_heads, self.spec.head_dim)
        k = self.random(num_tokens + padding_rows, self.config.num_kv_heads, self.spec.head_dim)
        v = self.random(num_tokens + padding_rows, self.config.num_kv_heads, self.spec.v_head_dim)
        for x in (q, k, v):
            x[num_tokens:] = float("nan")
        slots: list[int] = []
        wanted: list[torch.Tensor] = []
        row = 0
        for number, count in work:
            sequence = self.sequences[number]
            for new in range(row, row + count):
                if len(sequence.k) % size == 0:
                    sequence.pages.append(self.free.pop())
                slots.append(sequence.pages[-1] * size + len(sequence.k) % size)
                sequence.k.append(k[new])
                sequence.v.append(v[new])
            wanted.append(
                dense_attention(
                    q[row : row + count], torch.stack(sequence.k), torch.stack(sequence.v), self.spec, self.sinks
                )
            )
            row += count
        rows = [self.sequences[number] for number, _ in work]
        table = np.zeros((len(work), 2 + max(len(s.pages) for s in rows)), dtype=np.int32)
        for i, sequence in enumerate(rows):
            table[i, : len(sequence.pages)] = sequence.pages
        q_lens = np.array([count for _, count in work], dtype=np.int32)
        layout = BatchLayout(
            page_size=size,
            num_decodes=int((q_lens == 1).sum()),
            q_lens=q_lens,
            seq_lens=np.array([len(s.k) for s in rows], dtype=np.int32),
            cu_q_lens=np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32),
            page_table=table,
            slot_mapping=torch.tensor(slots + [0] * padding_rows, dtype=torch.int64),
        )
        self.backend.plan(layout)
        if stored_before:
            heads = self.config.num_kv_heads
            for buffer, new_rows in zip(self.kv[3], (k, v), strict=True):
                buffer.view(buffer.shape[0], heads, -1)[layout.slot_mapping] = new_rows
            out = self.backend.run(q, None, None, 3, self.kv[3], self.sinks)
        else:
            out = self.backend.run(q, k, v, 3, self.kv[3], self.sinks)
        assert out.shape == (num_tokens + padding_rows, self.config.num_heads, self.spec.v_head_dim)
        assert out.dtype == self.config.dtype
        return out[:num_tokens], torch.cat(wanted)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())
