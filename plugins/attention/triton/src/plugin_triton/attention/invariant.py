"""Attention whose results have the same bits however a sequence is cut into steps and whoever is in the batch."""

from __future__ import annotations

from dataclasses import replace

from core.interfaces.batch import BatchLayout
from core.interfaces.spec import StateKind
from plugin_triton.attention.backend import TritonAttention
from plugin_triton.attention.step import Step


class TritonInvariantAttention(TritonAttention):
    """Decodes are prompts of one token here: one kernel, with one size of tile, takes every row, and meets its keys in
    blocks that begin at the same places. Slower than `triton`, whose splits depend on the number of rows."""

    capabilities = replace(
        TritonAttention.capabilities,
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}),
        batch_invariant=True,
    )

    def plan(self, layout: BatchLayout) -> None:
        self._step = Step.of(layout, 1, few=0)
