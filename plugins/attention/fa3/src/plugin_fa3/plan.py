"""What a step calls, decided on the host once for all layers.

Decodes are one call over pages. The rows after them are cut where "starts here" (a prompt from its first token) and
"has history" change: the former attend to the step's own keys and values, contiguous and fresh, which the kernels read
fastest; the latter read pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from core.interfaces.batch import BatchLayout
from core.interfaces.spec import AttentionSpec
from plugin_fa3.providers.base import Rows

# Mean length, by token, from which fresh rows that a fused operation has stored are worth reading back: keys and values
# in one stretch are read a quarter faster than pages, and copying them costs what that gains at 1000 tokens.
_WORTH_COPYING = 1500
# A step that alternates more often than this between fresh rows and rows with history is one call over pages.
_MAX_PIECES = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Sequences of one call. paged: how to find their keys in pages. fresh: the same rows over the step's own keys and
    values, None where a sequence has history. num_rows: token rows. blocks: tiles of 128 query rows that one KV head
    has, over all of them. long: worth copying out of the pages if the step's own keys are not at hand.
    """

    paged: Rows
    fresh: Rows | None
    num_rows: int
    blocks: int
    long: bool


@dataclass(frozen=True, slots=True)
class Step:
    """slots [T]: where new keys go. num_tokens: rows of sequences; what follows is padding. captured: as the layout."""

    slots: torch.Tensor
    num_tokens: int
    decodes: Piece | None
    prefills: tuple[Piece, ...]
    captured: bool


def cached_dims(spec: AttentionSpec) -> tuple[int, int]:
    """Elements of a token's key and value in the pages. Of a latent: the part with its position, and the rest."""
    return (spec.rope_dim, spec.latent_dim) if spec.latent_dim else (spec.head_dim, spec.v_head_dim)


def plan_step(layout: BatchLayout, group: int, device: torch.device) -> Step:
    """group: query heads that share a KV head. Only views of the layout's tensors are kept, nothing is copied."""
    tensors = _on_device(layout, device)
    first = layout.num_decodes
    decodes = _piece(layout, 0, first, group, tensors) if first else None
    if first == layout.num_seqs:
        prefills: tuple[Piece, ...] = ()
    else:
        prefills = tuple(_piece(layout, a, b, group, tensors) for a, b in _cuts(layout, first))
    return Step(layout.slot_mapping, layout.num_tokens, decodes, prefills, layout.captured)


def _cuts(layout: BatchLayout, first: int) -> list[tuple[int, int]]:
    """Ranges of the sequences from `first` on, each all fresh or all with history (or mixed, if that is one call)."""
    starts_here = layout.q_lens[first:] == layout.seq_lens[first:]
    edges = [first, *(np.flatnonzero(starts_here[1:] != starts_here[:-1]) + first + 1).tolist(), layout.num_seqs]
    if len(edges) - 1 > _MAX_PIECES:
        edges = [first, layout.num_seqs]
    return list(pairwise(edges))


def _piece(
    layout: BatchLayout, first: int, last: int, group: int, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> Piece:
    cu_q, lengths, table = tensors
    q_lens, seq_lens = layout.q_lens[first:last], layout.seq_lens[first:last]
    rows, max_q, longest = cu_q[first : last + 1], int(q_lens.max()), int(seq_lens.max())
    # The kernels take the width of the table for the longest context, and cut long contexts into parts by it. A
    # recorded step has its buffer's width, whatever is in it.
    pages = table.shape[1] if layout.captured else -(-longest // layout.page_size)
    paged = Rows(rows, max_q, pages * layout.page_size, lengths[first:last], table[first:last, :pages])
    fresh = Rows(rows, max_q, longest) if not layout.captured and bool((q_lens == seq_lens).all()) else None
    num_rows = int(q_lens.sum())
    mean = float(np.square(q_lens, dtype=np.float64).sum()) / num_rows
    blocks = int((-(-q_lens * group // 128)).sum())
    return Piece(paged, fresh, num_rows, blocks, long=fresh is not None and mean >= _WORTH_COPYING)


def _on_device(layout: BatchLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """cu_q_lens, seq_lens and page table as device tensors of int32: the layout's, or copies where it has none."""

    def given(tensor: torch.Tensor | None, array: np.ndarray) -> torch.Tensor:
        if tensor is not None:
            return tensor
        return torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(device)

    return (
        given(layout.device_cu_q_lens, layout.cu_q_lens),
        given(layout.device_seq_lens, layout.seq_lens),
        given(layout.device_page_table, layout.page_table),
    )
