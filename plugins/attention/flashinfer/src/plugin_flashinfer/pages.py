"""A step's sequences as FlashInfer wants them: all page numbers in one row, and where each sequence's begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.interfaces.batch import BatchLayout

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PagedRows:
    """N sequences. first_row, last_row: their token rows in the step.

    q_starts [N+1]: sequence i owns token rows q_starts[i]:q_starts[i+1] of those. page_starts [N+1]: and these entries
    of pages [page_starts[N]]. last_lens [N]: tokens in the last page, 1 .. page_size. max_q: most rows of one sequence.
    """

    first_row: int
    last_row: int
    q_starts: Int32
    page_starts: Int32
    pages: Int32
    last_lens: Int32
    max_q: int


def paged_rows(layout: BatchLayout, first: int, last: int) -> PagedRows:
    """Of sequences first:last, at least one."""
    q_starts, lens, size = layout.cu_q_lens[first : last + 1], layout.seq_lens[first:last], layout.page_size
    counts = -(-lens // size)
    page_starts = np.zeros(last - first + 1, np.int32)
    np.cumsum(counts, out=page_starts[1:])
    table = layout.page_table[first:last]
    pages = table[np.arange(table.shape[1]) < counts[:, None]]
    return PagedRows(
        int(q_starts[0]),
        int(q_starts[-1]),
        (q_starts - q_starts[0]).astype(np.int32),
        page_starts,
        pages.astype(np.int32, copy=False),
        ((lens - 1) % size + 1).astype(np.int32),
        int(layout.q_lens[first:last].max()),
    )
