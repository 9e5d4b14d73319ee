"""A small world of sequences over pages to feed an attention backend with, and what it should answer.

Everything that a running server leaves lying around is there: page numbers in random order, pages that several
sequences share, pages that had another owner before, and not-a-number wherever nothing has been written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionConfig, MlaWeights
from core.interfaces.batch import BatchLayout
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind
from core.testing.contracts.attention_reference import as_cached, reference_attention, reference_mla

Kv = dict[int, tuple[torch.Tensor, ...]]
FIRST_LAYER, LAYER_STEP = 3, 4  # layers of a group are not numbered from 0, nor one after the other
MAX_SEQS, MAX_TOKENS, CONTEXT_LENGTH = 64, 1024, 1024


@dataclass(frozen=True)
class Rule:
    """What may differ between the layers of a group. scale None: one over the root of head_dim."""

    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    scale: float | None = None


@dataclass(frozen=True)
class Shape:
    """What a backend is built for. head_dim, for MLA_LATENT: of the part without position; the whole query is
    head_dim + rope_dim wide. v_head_dim 0: as head_dim. rules: one layer each. kv_scales: of keys and values of all
    layers, or a pair for each in `layer_scales`."""

    kind: StateKind = StateKind.FULL
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    v_head_dim: int = 0
    latent_dim: int = 0
    rope_dim: int = 0
    page_size: int = 4
    num_pages: int = 64
    dtype: torch.dtype = torch.float32
    rules: tuple[Rule, ...] = (Rule(),)
    tp_size: int = 1
    kv_dtype: torch.dtype | None = None
    kv_scales: tuple[float, float] = (1.0, 1.0)
    layer_scales: tuple[tuple[float, float], ...] = ()

    def with_rule(self, **changes: object) -> Shape:
        """The same with one layer, whose rule is the first one's with changes."""
        return replace(self, rules=(replace(self.rules[0], **changes),))  # type: ignore[arg-type]

    def config(self, device: torch.device) -> AttentionConfig:
        """As the runner makes it, for one of `tp_size` ranks; num_heads and num_kv_heads are of this rank."""
        latent = self.kind is StateKind.MLA_LATENT
        width = self.head_dim + self.rope_dim if latent else self.head_dim
        num_kv_heads = 1 if latent else self.num_kv_heads
        # A latent is whole on every rank; heads are dealt out.
        whole_kv_heads = 1 if latent else self.num_kv_heads * self.tp_size
        layers = {
            FIRST_LAYER + LAYER_STEP * index: AttentionSpec(
                num_heads=self.num_heads * self.tp_size,
                num_kv_heads=whole_kv_heads,
                head_dim=width,
                scale=rule.scale or 1 / math.sqrt(width),
                v_head_dim=self.v_head_dim or self.head_dim,
                window=rule.window,
                softcap=rule.softcap,
                has_sinks=rule.has_sinks,
                latent_dim=self.latent_dim if latent else 0,
                rope_dim=self.rope_dim if latent else 0,
            )
            for index, rule in enumerate(self.rules)
        }
        windows = [rule.window for rule in self.rules]
        group = CacheGroupSpec(
            name="kv",
            kind=self.kind,
            layers=tuple(layers),
            num_kv_heads=whole_kv_heads,
            head_dim=self.latent_dim if latent else self.head_dim,
            v_head_dim=self.rope_dim if latent else self.v_head_dim or self.head_dim,
            window=max(w for w in windows if w is not None) if all(w is not None for w in windows) else None,
        )
        return AttentionConfig(
            group=group,
            layers=layers,
            num_heads=self.num_heads,
            num_kv_heads=num_kv_heads,
            page_size=self.page_size,
            num_pages=self.num_pages,
            dtype=self.dtype,
            device=device,
            max_seqs=MAX_SEQS,
            max_tokens=MAX_TOKENS,
            context_length=CONTEXT_LENGTH,
            kv_dtype=self.kv_dtype,
            kv_scales=dict(zip(layers, self.layer_scales or (self.kv_scales,) * len(layers), strict=True)),
        )


@dataclass
class Story:
    """One sequence: its pages and, for each layer, what was stored for its tokens (k, v or latent, k_rope)."""

    pages: list[int] = field(default_factory=list)
    length: int = 0
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Of one layer in one step: got [T + padding, H, Dv] and, in float64, want [T, H, Dv]."""

    layer: int
    got: torch.Tensor
    want: torch.Tensor


class World:
    """backend is built for `config`; `kv` are its buffers as they stand, poisoned by the caller."""

    def __init__(self, backend: AttentionBackend, config: AttentionConfig, kv: Kv, seed: int = 0) -> None:
        self.backend, self.config, self.kv = backend, config, kv
        self.latent = config.group.kind is StateKind.MLA_LATENT
        self.generator = torch.Generator().manual_seed(seed)
        numbers = np.random.default_rng(seed).permutation(np.arange(1, config.num_pages))
        self.free = [int(page) for page in numbers]
        self.stories: list[Story] = []
        self.sinks = {
            layer: self._random(config.num_heads) if spec.has_sinks else None for layer, spec in config.layers.items()
        }
        self.weights = {
            layer: MlaWeights(
                self._random(config.num_heads, spec.head_dim - spec.rope_dim, spec.latent_dim) / spec.latent_dim**0.5,
                self._random(config.num_heads, spec.v_head_dim, spec.latent_dim) / spec.latent_dim**0.5,
            )
            for layer, spec in config.layers.items()
            if self.latent
        }

    def _random(self, *shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=self.generator)
        return values.to(self.config.dtype).to(self.config.device)

    # Sequences

    def new(self, count: int = 1) -> list[int]:
        self.stories.extend(Story() for _ in range(count))
        return list(range(len(self.stories) - count, len(self.stories)))

    def fork(self, parent: int, num_pages: int) -> int:
        """A sequence that begins with the first `num_pages` full pages of another."""
        source, length = self.stories[parent], num_pages * self.config.page_size
        assert length <= source.length
        kept = {layer: (first[:length], second[:length]) for layer, (first, second) in source.kept.items()}
        self.stories.append(Story(source.pages[:num_pages], length, kept))
        return len(self.stories) - 1

    def end(self, number: int) -> None:
        """Give a sequence's pages back as they are; the next to need pages gets them first."""
        story, self.stories[number] = self.stories[number], Story()
        shared = {page for other in self.stories for page in other.pages}
        self.free.extend(page for page in story.pages if page not in shared)

    # Steps

    def layout(
        self, work: Sequence[tuple[int, int]], padding_rows: int = 0, num_decodes: int | None = None
    ) -> BatchLayout:
        """Extend the sequences by their new tokens and say where all stands. Decodes must come first in `work`.

        num_decodes: how many of the leading one-token rows are decodes; None: all of them.
        """
        for number, count in work:
            story = self.stories[number]
            story.length += count
            while len(story.pages) * self.config.page_size < story.length:
                story.pages.append(self.free.pop())
        return self.layout_again(work, padding_rows, num_decodes)

    def layout_again(
        self, work: Sequence[tuple[int, int]], padding_rows: int = 0, num_decodes: int | None = None
    ) -> BatchLayout:
        """As `layout` for tokens that the sequences have already: their newest ones."""
        size = self.config.page_size
        rows = [self.stories[number] for number, _ in work]
        q_lens = np.array([count for _, count in work], np.int32)
        if num_decodes is None:
            longer = np.flatnonzero(q_lens != 1)
            num_decodes = int(longer[0]) if len(longer) else len(work)
        slots = [
            story.pages[position // size] * size + position % size
            for story, (_, count) in zip(rows, work, strict=True)
            for position in range(story.length - count, story.length)
        ] + [0] * padding_rows
        device = self.config.device
        # Sometimes wider than the longest sequence: entries past a sequence's end are 0, the null page.
        table = np.zeros((len(rows), max(len(story.pages) for story in rows) + len(rows) % 2), np.int32)
        for i, story in enumerate(rows):
            table[i, : len(story.pages)] = story.pages
        seq_lens = np.array([story.length for story in rows], np.int32)
        cu_q_lens = np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32)
        slot_dtype = {"int64": torch.int64, "int32": torch.int32}[self.backend.capabilities.slot_dtype]
        return BatchLayout(
            page_size=self.config.page_size,
            num_decodes=num_decodes,
            q_lens=q_lens,
            seq_lens=seq_lens,
            cu_q_lens=cu_q_lens,
            page_table=table,
            slot_mapping=torch.tensor(slots, dtype=slot_dtype).to(device),
            device_page_table=torch.from_numpy(table.copy()).to(device),
            device_seq_lens=torch.from_numpy(seq_lens.copy()).to(device),
            device_cu_q_lens=torch.from_numpy(cu_q_lens.copy()).to(device),
        )

    def inputs(self, layer: int, num_tokens: int, padding_rows: int = 0, fused: bool = False) -> list[torch.Tensor]:
        """q, k, v (or q_nope, q_rope, latent, k_rope) with padding rows that hold not-a-number.

        fused: as slices of one wider tensor, the way a fused projection leaves them.
        """
        config, spec = self.config, self.config.layers[layer]
        rows = num_tokens + padding_rows
        if self.latent:
            nope = spec.head_dim - spec.rope_dim
            q = self._random(rows, config.num_heads, spec.head_dim)
            stored = self._random(rows, spec.latent_dim + spec.rope_dim)
            for x in (q, stored):
                x[num_tokens:] = float("nan")
            parts = [q[..., :nope], q[..., nope:], stored[:, : spec.latent_dim], stored[:, spec.latent_dim :]]
            return parts if fused else [part.contiguous() for part in parts]
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        if fused and spec.head_dim == spec.v_head_dim:
            qkv = self._random(rows, sum(heads), spec.head_dim)
            qkv[num_tokens:] = float("nan")
            return list(qkv.split(heads, 1))
        parts = [
            self._random(rows, count, dim)
            for count, dim in zip(heads, (spec.head_dim, spec.head_dim, spec.v_head_dim), strict=True)
        ]
        for part in parts:
            part[num_tokens:] = float("nan")
        return parts

    def step(
        self,
        work: Sequence[tuple[int, int]],
        *,
        padding_rows: int = 0,
        fused: bool = False,
        num_decodes: int | None = None,
        twice: bool = False,
        after_plan: Callable[[BatchLayout], None] | None = None,
    ) -> list[Outcome]:
        """Run (sequence, number of new tokens) pairs, decodes first, through every layer.

        twice: a second time over what the first run stored; for groups that are not latent, with k and v None, as
        if a fused operation had stored them. The answer is the second one.
        """
        layout = self.layout(work, padding_rows, num_decodes)
        self.backend.plan(layout)
        if after_plan is not None:
            after_plan(layout)
        outcomes = []
        for layer in self.config.layers:
            inputs = self.inputs(layer, layout.num_tokens, padding_rows, fused)
            got = self.run(layer, inputs)
            if twice:
                got = self.run(layer, inputs, stored=True)
            outcomes.append(Outcome(layer, got, self.remember(layer, work, inputs)))
        return outcomes

    def run(self, layer: int, inputs: list[torch.Tensor], stored: bool = False) -> torch.Tensor:
        """One call of the backend. The planned layout says where the tokens stand."""
        if self.latent:
            q_nope, q_rope, latent, k_rope = inputs
            return self.backend.run_mla(q_nope, q_rope, latent, k_rope, self.weights[layer], layer, self.kv[layer])
        q, k, v = inputs
        return self.backend.run(
            q, None if stored else k, None if stored else v, layer, self.kv[layer], self.sinks[layer]
        )

    def _cached(self, x: torch.Tensor, layer: int, which: int) -> torch.Tensor:
        """What a cache of the configured type makes of keys (0) or values (1)."""
        config = self.config
        if config.cache_dtype == config.dtype:
            return x
        return as_cached(x, config.cache_dtype, config.scales(layer)[0 if self.latent else which])

    def remember(self, layer: int, work: Sequence[tuple[int, int]], inputs: list[torch.Tensor]) -> torch.Tensor:
        """Add what a step stored to the sequences; returns what attention gives for its rows."""
        spec, wanted, row = self.config.layers[layer], [], 0
        *queries, first, second = inputs
        for number, count in work:
            story, rows = self.stories[number], slice(row, row + count)
            old = story.kept.get(layer)
            new = (self._cached(first[rows], layer, 0), self._cached(second[rows], layer, 1))
            kept = new if old is None else (torch.cat((old[0], new[0])), torch.cat((old[1], new[1])))
            story.kept[layer] = kept
            if self.latent:
                wanted.append(reference_mla(queries[0][rows], queries[1][rows], *kept, self.weights[layer], spec))
            else:
                wanted.append(reference_attention(queries[0][rows], *kept, spec, self.sinks[layer]))
            row += count
        return torch.cat(wanted)
