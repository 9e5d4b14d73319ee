"""Latent attention the long way: keys and values of every head from the latents, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionConfig, MlaWeights
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind

from .oracle import dense_attention


def latent_config(
    *,
    num_heads: int = 3,
    rank: int = 10,
    rope_dim: int = 4,
    nope_dim: int = 6,
    v_dim: int = 7,
    page_size: int = 4,
    num_pages: int = 200,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> AttentionConfig:
    head_dim = nope_dim + rope_dim
    spec = AttentionSpec(num_heads, 1, head_dim, head_dim**-0.5, v_dim, latent_dim=rank, rope_dim=rope_dim, **changes)
    group = CacheGroupSpec("latent", StateKind.MLA_LATENT, (3,), 1, rank, rope_dim)
    cpu = torch.device("cpu")
    return AttentionConfig(group, {3: spec}, num_heads, 1, page_size, num_pages, dtype, cpu, 64, 4096, 4096)


@dataclass
class Sequence:
    pages: list[int] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    rotated: list[torch.Tensor] = field(default_factory=list)


class LatentWorld:
    """Sequences, their pages and a backend. The cache starts as not-a-number everywhere."""

    def __init__(self, backend: type[AttentionBackend], config: AttentionConfig, seed: int = 0) -> None:
        self.config, self.spec = config, config.layers[3]
        assert backend.rejects(config) is None
        self.backend = backend(config, PluginContext())
        self.kv = self.backend.allocate()
        for buffer in self.kv[3]:
            buffer.fill_(float("nan"))
        self.generator = torch.Generator().manual_seed(seed)
        numbers = np.random.default_rng(seed).permutation(np.arange(1, config.num_pages))
        self.free = [int(page) for page in numbers]
        self.sequences: list[Sequence] = []
        heads, rank = config.num_heads, self.spec.latent_dim
        nope = self.spec.head_dim - self.spec.rope_dim
        self.weights = MlaWeights(
            self.random(heads, nope, rank) * rank**-0.5, self.random(heads, self.spec.v_head_dim, rank) * rank**-0.5
        )

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.config.dtype)

    def new(self) -> int:
        self.sequences.append(Sequence())
        return len(self.sequences) - 1

    def fork(self, parent: int, num_pages: int) -> int:
        source, tokens = self.sequences[parent], num_pages * self.config.page_size
        assert tokens <= len(source.latents)
        self.sequences.append(Sequence(source.pages[:num_pages], source.latents[:tokens], source.rotated[:tokens]))
        return len(self.sequences) - 1

    def _wanted(self, q: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        latents = torch.stack(sequence.latents).double()
        k_nope = torch.einsum("hdr,kr->khd", self.weights.key.double(), latents)
        rotated = torch.stack(sequence.rotated).double()[:, None].expand(-1, q.shape[1], -1)
        values = torch.einsum("hdr,kr->khd", self.weights.value.double(), latents)
        return dense_attention(q, torch.cat((k_nope, rotated), -1), values, self.spec, None)

    def step(self, work: list[tuple[int, int]], *, padding_rows: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Run (sequence, number of new tokens) pairs, decodes first. Returns (output, float64 oracle)."""
        size, num_tokens, spec = self.config.page_size, sum(count for _, count in work), self.spec
        total, heads = num_tokens + padding_rows, self.config.num_heads
        nope = spec.head_dim - spec.rope_dim
        q_nope, q_rope = self.random(total, heads, nope), self.random(total, heads, spec.rope_dim)
        latent, rotated = self.random(total, spec.latent_dim), self.random(total, spec.rope_dim)
        for x in (q_nope, q_rope, latent, rotated):
            x[num_tokens:] = float("nan")
        slots: list[int] = []
        wanted: list[torch.Tensor] = []
        row = 0
        for number, count in work:
            sequence = self.sequences[number]
            for new in range(row, row + count):
                if len(sequence.latents) % size == 0:
                    sequence.pages.append(self.free.pop())
                slots.append(sequence.pages[-1] * size + len(sequence.latents) % size)
                sequence.latents.append(latent[new])
                sequence.rotated.append(rotated[new])
            q = torch.cat((q_nope[row : row + count], q_rope[row : row + count]), -1)
            wanted.append(self._wanted(q, sequence))
            row += count
        rows = [self.sequences[number] for number, _ in work]
        table = np.zeros((len(work), 2 + max(len(s.pages) for s in rows)), dtype=np.int32)
        for i, sequence in enumerate(rows):
            table[i, : len(sequence.pages)] = sequence.pages
        q_lens = np.array([count for _, count in work], dtype=np.int32)
        self.backend.plan(
            BatchLayout(
                page_size=size,
                num_decodes=int((q_lens == 1).sum()),
                q_lens=q_lens,
                seq_lens=np.array([len(s.latents) for s in rows], dtype=np.int32),
                cu_q_lens=np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32),
                page_table=table,
                slot_mapping=torch.tensor(slots + [0] * padding_rows, dtype=torch.int64),
            )
        )
        out = self.backend.run_mla(q_nope, q_rope, latent, rotated, self.weights, 3, self.kv[3])
        assert out.shape == (total, heads, spec.v_head_dim)
        assert out.dtype == self.config.dtype
        return out[:num_tokens], torch.cat(wanted)
