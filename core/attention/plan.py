"""What a step's attention will do, worked out once on the host for all layers that follow one rule.

What lives here: numpy over page tables; the decisions which rows go together and which keys are read.
What does not: any arithmetic on queries, keys or values (`decode`, `prefill`, `kernels`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from core.attention.narrow import Rows
from core.interfaces.batch import BatchLayout, Int32

Int64 = npt.NDArray[np.int64]

# Measured with bench/attention_cpu.py: below these, an extra call costs more than the work that it saves.
MIN_SHARED_SAVING = 512  # tokens not read because a prefix is shared
MIN_PADDING_SAVING = 2048  # padded tokens not read because rows are split by length
PREFILL_MASK_ELEMENTS = 1 << 16  # up to this size a masked call beats merging two unmasked ones
PREFILL_BLOCK_ROWS = 512  # query rows a call where a mask is needed


@dataclass(frozen=True, slots=True)
class Rule:
    """What tells layers of one cache group apart.

    window: keys a token sees, or None for all. masked: every prefill goes through masks, block by block, because no
    fused kernel serves it and the scores of a whole prompt may not fit the memory. merges: a chunk may be attended
    apart from its history, because the kernel returns the log-sum-exp.
    """

    window: int | None
    masked: bool
    merges: bool


@dataclass(frozen=True, slots=True)
class Keys:
    """KV slots to read: `count` rows from `start` when they lie together, else the rows in `index`."""

    start: int
    count: int
    index: torch.Tensor | None

    def rows(self, buffer: Rows) -> torch.Tensor:
        """buffer [S, F] -> [count, F]; a view where possible."""
        if self.index is None:
            return buffer.narrow(0, self.start, self.count)
        return buffer.index_select(0, self.index)


@dataclass(frozen=True, slots=True)
class DecodeBlock:
    """Decode rows attended in one call, each over `length` gathered keys.

    rows: decode rows in this block, or None for all of them in order. mask [B, 1, 1, length] hides padding, None
    if there is none.
    """

    rows: torch.Tensor | None
    num_rows: int
    length: int
    keys: Keys
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Decode rows (None: all, in order) whose first `keys.count` tokens are the same pages."""

    rows: torch.Tensor | None
    num_rows: int
    keys: Keys


@dataclass(frozen=True, slots=True)
class MaskedBlock:
    """Query rows first_row..last_row of the step against a range of one sequence's keys under a mask [rows, keys]."""

    first_row: int
    last_row: int
    keys: Keys
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class CausalSequence:
    """Rows first_row..last_row attend causally among themselves, and to all of `history` where there is one."""

    first_row: int
    last_row: int
    history: Keys | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """decode rows are the first `num_decodes` token rows; the lists cover every token row exactly once."""

    num_tokens: int
    num_decodes: int
    decodes: tuple[DecodeBlock, ...]
    shared: tuple[SharedPrefix, ...]
    masked: tuple[MaskedBlock, ...]
    causal: tuple[CausalSequence, ...]


def leading_decodes(layout: BatchLayout) -> int:
    """Sequences at the front that have one new token each."""
    longer = np.flatnonzero(layout.q_lens != 1)
    return int(longer[0]) if len(longer) else layout.num_seqs


class Planner:
    """Builds `StepPlan`s for one device, dtype and page size.

    max_block_tokens: most tokens gathered for one call, unless a single row is longer.
    """

    def __init__(self, page_size: int, max_block_tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.page_size = page_size
        self.max_block_tokens = max_block_tokens
        self.device = device
        self.dtype = dtype
        self._offsets = np.arange(page_size, dtype=np.int64)

    def plan(self, layout: BatchLayout, rule: Rule) -> StepPlan:
        """layout's host side -> plan. Rows with one new token are decodes, wherever the scheduler counted them."""
        plan = self.plan_decodes(layout, rule)
        prefills = self.plan_prefills(layout, rule, range(plan.num_decodes, layout.num_seqs))
        return replace(plan, masked=prefills.masked, causal=prefills.causal)

    def plan_decodes(self, layout: BatchLayout, rule: Rule) -> StepPlan:
        """A plan that covers the decode rows alone."""
        num_decodes = leading_decodes(layout)
        decodes: tuple[DecodeBlock, ...] = ()
        shared: tuple[SharedPrefix, ...] = ()
        if num_decodes:
            decodes, shared = self._decodes(layout, num_decodes, rule)
        return StepPlan(layout.num_tokens, num_decodes, decodes, shared, (), ())

    def plan_prefills(self, layout: BatchLayout, rule: Rule, sequences: Iterable[int]) -> StepPlan:
        """A plan that covers the token rows of `sequences` alone, each as a prefill."""
        masked: list[MaskedBlock] = []
        causal: list[CausalSequence] = []
        for i in sequences:
            if layout.q_lens[i] > 0:
                self._prefill(layout, int(i), rule, masked, causal)
        return StepPlan(layout.num_tokens, 0, (), (), tuple(masked), tuple(causal))

    def shared_prefixes(self, layout: BatchLayout) -> list[tuple[Int64, int]]:
        """Groups of decode rows that begin with the same whole pages, where reading them once pays: (rows, tokens in
        common). A row is in one group at most."""
        num_rows = leading_decodes(layout)
        if num_rows < 2:
            return []
        ends = np.maximum(layout.seq_lens[:num_rows].astype(np.int64), 1)
        return self._shared_prefixes(layout.page_table[:num_rows], ends)

    def _tensor(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def keys(self, pages: Int32, first: int, last: int) -> Keys:
        """Slots of tokens first..last-1 of the sequence whose page numbers are `pages` [P]."""
        size = self.page_size
        first_page, end_page = first // size, -(-last // size)
        used = pages[first_page:end_page]
        skip, count = first - first_page * size, last - first
        if len(used) == 1 or bool((np.diff(used) == 1).all()):
            return Keys(int(used[0]) * size + skip, count, None)
        slots = (used.astype(np.int64)[:, None] * size + self._offsets).reshape(-1)
        return Keys(0, count, self._tensor(slots[skip : skip + count]))

    def _decodes(
        self, layout: BatchLayout, num_rows: int, rule: Rule
    ) -> tuple[tuple[DecodeBlock, ...], tuple[SharedPrefix, ...]]:
        ends = np.maximum(layout.seq_lens[:num_rows].astype(np.int64), 1)
        table = layout.page_table[:num_rows]
        starts = np.zeros(num_rows, dtype=np.int64)
        shared: list[SharedPrefix] = []
        if rule.window is not None:
            np.maximum(ends - rule.window, 0, out=starts)
        elif num_rows > 1:
            for members, count in self._shared_prefixes(table, ends):
                starts[members] = count
                rows = None if len(members) == num_rows else self._tensor(members)
                shared.append(SharedPrefix(rows, len(members), self.keys(table[members[0]], 0, count)))
        if num_rows == 1:
            keys = self.keys(table[0], int(starts[0]), int(ends[0]))
            return (DecodeBlock(None, 1, keys.count, keys, None),), ()
        blocks = tuple(
            self._decode_block(table, starts, ends, rows, whole=len(rows) == num_rows)
            for rows in split_by_length(ends - starts, self.max_block_tokens)
        )
        return blocks, tuple(shared)

    def _decode_block(self, table: Int32, starts: Int64, ends: Int64, rows: Int64, whole: bool) -> DecodeBlock:
        size = self.page_size
        if not whole:
            table, starts, ends = table[rows], starts[rows], ends[rows]
        first_page = starts // size
        base = first_page * size  # position of the first gathered key
        length = int((ends - base).max())
        columns = np.minimum(first_page[:, None] + np.arange(-(-length // size)), table.shape[1] - 1)
        pages = np.take_along_axis(table, columns, 1).astype(np.int64)
        slots = (pages[:, :, None] * size + self._offsets).reshape(len(rows), -1)[:, :length]
        offsets = np.arange(length)
        seen = (offsets < (ends - base)[:, None]) & (offsets >= (starts - base)[:, None])
        mask = None
        if not seen.all():
            # What is not seen may hold anything, not-a-number too, and 0 * NaN is NaN: read the newest token instead.
            newest = (ends - 1 - base)[:, None]
            slots = np.where(seen, slots, np.take_along_axis(slots, newest, 1))
            hidden = self._tensor(~seen)
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(hidden, float("-inf")).view(len(rows), 1, 1, length)
        keys = Keys(0, slots.size, self._tensor(slots.reshape(-1)))
        return DecodeBlock(None if whole else self._tensor(rows), len(rows), length, keys, mask)

    def _shared_prefixes(self, table: Int32, ends: Int64) -> list[tuple[Int64, int]]:
        """Groups of rows that begin with the same whole pages: (rows, tokens in common), where that pays.

        A row is in one group at most. Of a short prefix common to many rows and longer ones common to fewer, the
        choice that leaves more tokens unread wins.
        """
        # The newest token is each row's own, so at least that one is left for the row's own part.
        most = (ends - 1) // self.page_size
        rows = np.flatnonzero(most > 0)
        groups: list[tuple[Int64, int]] = []
        for _, members in _groups_by(table[rows, 0], rows):
            groups += self._best_groups(table, most, members)[1]
        return groups

    def _best_groups(self, table: Int32, most: Int64, members: Int64) -> tuple[int, list[tuple[Int64, int]]]:
        """(tokens saved, groups) among `members` (two or more), which agree on their first page."""
        limit = int(most[members].min())
        same = (table[members, :limit] == table[members[0], :limit]).all(0)
        pages = limit if same.all() else int(same.argmin())
        saved = pages * self.page_size * (len(members) - 1)
        groups = [(members, pages * self.page_size)] if saved >= MIN_SHARED_SAVING else []
        longer = members[most[members] > pages]
        deeper_saved, deeper = 0, []
        for _, inner in _groups_by(table[longer, pages], longer):
            inner_saved, inner_groups = self._best_groups(table, most, inner)
            deeper_saved += inner_saved
            deeper += inner_groups
        if deeper_saved > (saved if groups else 0):
            return deeper_saved, deeper
        return (saved, groups) if groups else (0, [])

    def _prefill(
        self,
        layout: BatchLayout,
        i: int,
        rule: Rule,
        masked: list[MaskedBlock],
        causal: list[CausalSequence],
    ) -> None:
        first_row, last_row = int(layout.cu_q_lens[i]), int(layout.cu_q_lens[i + 1])
        end = int(layout.seq_lens[i])
        history = end - (last_row - first_row)
        pages = layout.page_table[i]
        windowed = rule.window is not None and end > rule.window
        small = (last_row - first_row) * end <= PREFILL_MASK_ELEMENTS
        together = history > 0 and (small or not rule.merges)
        if not (windowed or rule.masked or together):
            causal.append(
                CausalSequence(first_row, last_row, self.keys(pages, 0, history) if history else None),
            )
            return
        for row in range(first_row, last_row, PREFILL_BLOCK_ROWS):
            stop = min(row + PREFILL_BLOCK_ROWS, last_row)
            oldest, newest = history + row - first_row, history + stop - first_row  # positions of the queries
            first_key = max(0, oldest - rule.window + 1) if rule.window is not None else 0
            masked.append(
                MaskedBlock(
                    row,
                    stop,
                    self.keys(pages, first_key, newest),
                    self._causal_mask(stop - row, newest - first_key, rule.window),
                )
            )

    def _causal_mask(self, num_rows: int, num_keys: int, window: int | None) -> torch.Tensor | None:
        """[rows, keys] additive; the last row stands at the last key. None when nothing is hidden."""
        if num_rows == 1 and (window is None or num_keys <= window):
            return None
        position = torch.arange(num_keys - num_rows, num_keys, device=self.device)[:, None]
        key = torch.arange(num_keys, device=self.device)
        hidden = key > position
        if window is not None:
            hidden |= key <= position - window
        return torch.zeros(num_rows, num_keys, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))


def _groups_by(values: Int32, rows: Int64) -> list[tuple[int, Int64]]:
    """(value, rows that have it) for each value that two or more of `rows` have; `values` runs along `rows`."""
    distinct, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return [(int(distinct[n]), rows[group == n]) for n in np.flatnonzero(counts > 1)]


def split_by_length(lengths: Int64, max_tokens: int) -> list[Int64]:
    """Row numbers in groups that are gathered together: similar lengths, at most max_tokens with padding.

    All rows in their own order when one group will do.
    """
    longest = int(lengths.max())
    num_rows = len(lengths)
    if longest * num_rows - int(lengths.sum()) <= MIN_PADDING_SAVING and longest * num_rows <= max_tokens:
        return [np.arange(num_rows)]
    order = np.argsort(-lengths, kind="stable")
    left = np.cumsum(lengths[order][::-1])[::-1]  # tokens from here to the end of the order
    groups: list[Int64] = []
    begin = 0
    for at in range(1, num_rows + 1):
        if at < num_rows:
            head = int(lengths[order[begin]])
            padding = head * (num_rows - at) - int(left[at])
            much_shorter = int(lengths[order[at]]) * 4 < head * 3 and padding > MIN_PADDING_SAVING
            full = head * (at + 1 - begin) > max_tokens
            if not (much_shorter or full):
                continue
        groups.append(np.sort(order[begin:at]))
        begin = at
    return groups
