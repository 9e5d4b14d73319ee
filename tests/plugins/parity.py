"""Parity of a model plugin with transformers, on hand-built batches over a paged KV cache.

`ParityCase(hf_model, folder, arch)` writes the transformers model with save_pretrained, loads it through core's loader
into the plugin's module and drives `forward` step by step. Attention is the dense reference below, pages are given out
in random order, and every cache group has its own page numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.model import ModelArch
from core.interfaces.spec import StateKind
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.runner.weights import LoadReport, load_weights
from core.testing.contracts.model_checkpoint import randomise
from core.testing.contracts.model_driver import ThreadRank, run_ranks
from core.testing.mock_runner import SingleRank

TOLERANCE = 1e-4
CPU = torch.device("cpu")


def build_context(**changes: Any) -> BuildContext:
    """A context for float32 on the CPU with core's references."""
    plugin = PluginContext()
    base = BuildContext(
        dtype=torch.float32,
        device=CPU,
        ops=REFERENCES,
        quant=Unquantized(None, plugin),
        moe=TorchNativeMoe(plugin),
        tp=SingleRank(),
        max_tokens=512,
        context_length=512,
    )
    return base.replace(**changes)


class DenseAttention(AttentionBackend):
    """Attention written straight from its definition: gathers every sequence's keys, masks, softmax."""

    capabilities = AttentionCapabilities(state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}))

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config
        slots = config.num_pages * config.page_size
        # Poisoned, so that reading a slot nobody wrote shows.
        return {
            layer: tuple(
                torch.full((slots, config.num_kv_heads, dim), float("nan"), dtype=config.dtype)
                for dim in (spec.head_dim, spec.v_head_dim)
            )
            for layer, spec in config.layers.items()
        }

    def plan(self, layout: BatchLayout) -> None:
        self.layout = layout

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert k is not None
        assert v is not None
        layout, spec = self.layout, self.config.layers[layer]
        keys, values = kv
        keys[layout.slot_mapping] = k
        values[layout.slot_mapping] = v
        repeats = q.shape[1] // keys.shape[1]
        rows = []
        for i in range(layout.num_seqs):
            length, new = int(layout.seq_lens[i]), int(layout.q_lens[i])
            positions = np.arange(length)
            pages = layout.page_table[i, positions // layout.page_size].astype(np.int64)
            slots = torch.from_numpy(pages * layout.page_size + positions % layout.page_size)
            query = q[layout.cu_q_lens[i] : layout.cu_q_lens[i] + new]
            own = torch.arange(length - new, length)[:, None]
            seen = torch.arange(length)[None, :]
            hidden = seen > own
            if spec.window is not None:
                hidden |= seen <= own - spec.window
            # Keys outside every window may have been given back: they must not be read.
            keep = ~hidden.all(0)
            all_keys = keys[slots[keep]].repeat_interleave(repeats, 1)
            all_values = values[slots[keep]].repeat_interleave(repeats, 1)
            scores = torch.einsum("qhd,khd->hqk", query, all_keys) * spec.scale
            scores.masked_fill_(hidden[:, keep], float("-inf"))
            rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), all_values))
        return torch.cat(rows)


@dataclass
class Sequence:
    """One sequence's KV state. pages[g]: its pages in cache group g, in order."""

    pages: list[list[int]]
    length: int = 0
    tokens: list[int] = field(default_factory=list)


class ParityCase:
    """A transformers model and the plugin's, side by side, in float32 on the CPU.

    folder: where the checkpoint is written (unless not `save`: then it is there). tp: this rank's communicator.
    backend, ops: what the plugin's model computes with.
    context_length: of the plugin's model; None takes the spec's.
    """

    def __init__(
        self,
        hf_model: Any,
        folder: Path,
        arch: type[ModelArch],
        *,
        page_size: int = 4,
        num_pages: int = 160,
        context_length: int | None = None,
        seed: int = 0,
        save: bool = True,
        tp: Any = None,
        backend: type[AttentionBackend] = DenseAttention,
        ops: Mapping[str, Callable[..., Any]] = REFERENCES,
    ) -> None:
        if save:
            randomise(hf_model, seed)
            hf_model.eval().save_pretrained(folder)
        self.hf = hf_model
        self.page_size = page_size
        self.num_pages = num_pages
        self.config = json.loads((folder / "config.json").read_text())
        self.spec = arch.spec(self.config)
        self.ctx = build_context(
            context_length=context_length or self.spec.context_length, tp=tp or SingleRank(), ops=ops
        )
        self.model: Any = arch.build(self.spec, self.ctx)
        self.report: LoadReport = load_weights(self.model, arch.weights(self.spec), folder, threads=2)
        self.rng = np.random.default_rng(seed)
        self.attention = tuple(self._backend(g, backend) for g in range(len(self.spec.cache_groups)))
        buffers: dict[int, tuple[torch.Tensor, ...]] = {}
        for backend in self.attention:
            buffers.update(backend.allocate())
        self.kv = tuple(buffers[layer] for layer in range(len(self.spec.layers)))
        # Page 0 is the null page.
        self.free = [list(self.rng.permutation(np.arange(1, num_pages))) for _ in self.attention]

    def _backend(self, g: int, backend: type[AttentionBackend]) -> AttentionBackend:
        group, first = self.spec.cache_groups[g], self.spec.layers
        layers = {i: first[i].attention for i in group.layers}
        config = AttentionConfig(
            group=group,
            layers=layers,  # type: ignore[arg-type]
            num_heads=first[group.layers[0]].attention.num_heads // self.ctx.tp.size,  # type: ignore[union-attr]
            num_kv_heads=max(1, group.num_kv_heads // self.ctx.tp.size),
            page_size=self.page_size,
            num_pages=self.num_pages,
            dtype=torch.float32,
            device=CPU,
            max_seqs=64,
            max_tokens=512,
            context_length=self.ctx.context_length,
        )
        return backend(config, PluginContext())

    def tokens(self, count: int) -> list[int]:
        return [int(t) for t in self.rng.integers(0, self.spec.vocab_size, count)]

    def sequence(self) -> Sequence:
        return Sequence([[] for _ in self.attention])

    def share(self, parent: Sequence, length: int) -> Sequence:
        """A sequence that starts with the pages of `parent`'s first `length` tokens (whole pages)."""
        assert length % self.page_size == 0
        pages = [list(own[: length // self.page_size]) for own in parent.pages]
        return Sequence(pages, length, parent.tokens[:length])

    @torch.inference_mode()
    def step(self, rows: list[tuple[Sequence, list[int]]]) -> list[torch.Tensor]:
        """One forward pass; decodes first. Returns logits [q_len, vocab_size] of each row."""
        for seq, new in rows:
            seq.tokens.extend(new)
            seq.length += len(new)
            for g, pages in enumerate(seq.pages):
                while len(pages) * self.page_size < seq.length:
                    pages.append(int(self.free[g].pop()))
        q_lens = np.array([len(new) for _, new in rows], np.int32)
        seq_lens = np.array([seq.length for seq, _ in rows], np.int32)
        cu_q_lens = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
        positions = np.concatenate([np.arange(s.length - len(new), s.length) for s, new in rows])
        owner = np.repeat(np.arange(len(rows)), q_lens)
        layouts = []
        for g, backend in enumerate(self.attention):
            width = max(len(seq.pages[g]) for seq, _ in rows) + 1
            table = np.zeros((len(rows), width), np.int32)
            for i, (seq, _) in enumerate(rows):
                table[i, : len(seq.pages[g])] = seq.pages[g]
            page = table[owner, positions // self.page_size].astype(np.int64)
            slots = torch.from_numpy(page * self.page_size + positions % self.page_size)
            num_decodes = int((q_lens == 1).sum())
            layout = BatchLayout(
                self.page_size,
                num_decodes,
                q_lens,
                seq_lens,
                cu_q_lens,
                table,
                slots,
                device_page_table=torch.from_numpy(table),
                device_seq_lens=torch.from_numpy(seq_lens),
                device_cu_q_lens=torch.from_numpy(cu_q_lens),
            )
            backend.plan(layout)
            layouts.append(layout)
        batch = ForwardBatch(
            input_ids=torch.tensor([t for _, new in rows for t in new]),
            positions=torch.from_numpy(positions.astype(np.int64)),
            logits_rows=torch.from_numpy(cu_q_lens[1:].astype(np.int64) - 1),
            layouts=tuple(layouts),
            attention=self.attention,
            kv=self.kv,
        )
        hidden = self.model.forward(batch)
        assert hidden.shape == (len(positions), self.spec.hidden_size)
        logits = self.model.compute_logits(hidden)
        return list(logits.split([int(n) for n in q_lens]))

    @torch.inference_mode()
    def reference(self, tokens: list[int]) -> torch.Tensor:
        """Logits [T, vocab_size] of transformers, the whole text at once."""
        return self.hf(torch.tensor([tokens]), use_cache=False).logits[0]

    def expect(self, logits: torch.Tensor, seq: Sequence) -> None:
        """`logits` are those of the last tokens of `seq`."""
        wanted = self.reference(seq.tokens)[-len(logits) :]
        torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=TOLERANCE)

    def check_prefill(self, length: int) -> None:
        seq = self.sequence()
        (logits,) = self.step([(seq, self.tokens(length))])
        self.expect(logits, seq)

    def check_chunked(self, chunks: list[int]) -> None:
        seq = self.sequence()
        for chunk in chunks:
            (logits,) = self.step([(seq, self.tokens(chunk))])
            self.expect(logits, seq)

    def check_shared_prefix(self, prefix_pages: int, tail: int) -> None:
        """Decode after a prefix whose pages another sequence filled and goes on using."""
        parent = self.sequence()
        self.step([(parent, self.tokens(prefix_pages * self.page_size + tail))])
        child = self.share(parent, prefix_pages * self.page_size)
        (logits,) = self.step([(child, self.tokens(tail + 1))])
        self.expect(logits, child)
        for _ in range(3):
            first, second = self.step([(child, self.tokens(1)), (parent, self.tokens(1))])
            self.expect(first, child)
            self.expect(second, parent)

    def check_mixed(self, lengths: list[int]) -> None:
        """Steps in which some sequences decode while others prefill."""
        running: list[Sequence] = []
        for length in lengths:
            fresh = self.sequence()
            rows = [(seq, self.tokens(1)) for seq in running]
            rows.append((fresh, self.tokens(length)))
            running.append(fresh)
            for logits, (seq, _) in zip(self.step(rows), rows, strict=True):
                self.expect(logits, seq)

    def check_greedy(self, prompt_length: int, num_tokens: int = 64) -> None:
        """Greedy texts equal those of transformers' generate with its own cache."""
        prompt = self.tokens(prompt_length)
        config = self.hf.generation_config
        config.eos_token_id, config.pad_token_id = None, 0
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            out = self.hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens)
        wanted = out[0, prompt_length:].tolist()
        assert len(wanted) == num_tokens
        seq = self.sequence()
        got: list[int] = []
        new = prompt
        for _ in range(num_tokens):
            (logits,) = self.step([(seq, new)])
            new = [int(logits[-1].argmax())]
            got += new
        assert got == wanted


def check_ranks(
    whole: ParityCase,
    folder: Path,
    arch: type[ModelArch],
    size: int,
    *,
    backend: type[AttentionBackend] = DenseAttention,
) -> None:
    """`size` ranks that load their shares of `whole`'s checkpoint give its logits, prefilling and decoding."""
    prompt, more = whole.tokens(13), whole.tokens(4)

    def texts(case: ParityCase) -> torch.Tensor:
        seq = case.sequence()
        return torch.cat([case.step([(seq, new)])[0] for new in (prompt, *([t] for t in more))])

    def share(rank: ThreadRank) -> torch.Tensor:
        return texts(ParityCase(None, folder, arch, save=False, tp=rank, backend=backend))

    wanted = texts(whole)
    for result in run_ranks(size, share):
        torch.testing.assert_close(result, wanted, atol=TOLERANCE, rtol=TOLERANCE)
