"""One step as the kernels see it: which rows go where, and where the device's numbers lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.interfaces.batch import BatchLayout
from plugin_triton.attention.sharing import SharedRows


@dataclass(frozen=True, slots=True)
class Step:
    """Rows 0 .. few-1 have at most `queries` new tokens each and go to `decode`, the others to `prefill`.

    few_tokens: token rows of the former, num_tokens of all. longest_history, of the latter: keys of earlier steps.
    shared: prefixes that the former have in common, None where nobody looks for them.
    """

    num_seqs: int
    few: int
    queries: int
    few_tokens: int
    num_tokens: int
    longest_history: int
    any_fresh: bool
    shared: SharedRows | None
    slots: torch.Tensor
    table: torch.Tensor
    table_stride: int
    seq_lens: torch.Tensor
    cu_q_lens: torch.Tensor

    @classmethod
    def of(
        cls, layout: BatchLayout, most_queries: int, shared: SharedRows | None = None, *, few: int | None = None
    ) -> Step:
        """most_queries: new tokens of a row that `decode` takes at most. few: if not as many as possible."""
        assert layout.device_page_table is not None
        assert layout.device_seq_lens is not None
        assert layout.device_cu_q_lens is not None
        few = few_rows(layout, most_queries) if few is None else few
        q_lens = layout.q_lens
        history = layout.seq_lens[few:] - q_lens[few:]
        return cls(
            num_seqs=layout.num_seqs,
            few=few,
            queries=1 if not few or int(q_lens[:few].max()) == 1 else most_queries,
            few_tokens=int(layout.cu_q_lens[few]),
            num_tokens=layout.num_tokens,
            longest_history=int(history.max()) if len(history) else 0,
            any_fresh=bool(len(history)) and not int(history.min()),
            shared=shared,
            slots=layout.slot_mapping,
            table=layout.device_page_table,
            table_stride=layout.device_page_table.stride(0),
            seq_lens=layout.device_seq_lens,
            cu_q_lens=layout.device_cu_q_lens,
        )


def few_rows(layout: BatchLayout, most_queries: int) -> int:
    """Leading rows for `decode`: those with one new token each, or all if none has more than most_queries."""
    if layout.captured:
        return layout.num_seqs
    q_lens = layout.q_lens
    if len(q_lens) and q_lens[0] > 1 and q_lens.min() > 0 and q_lens.max() <= most_queries:
        return layout.num_seqs
    others = np.flatnonzero(q_lens != 1)
    return int(others[0]) if len(others) else layout.num_seqs
