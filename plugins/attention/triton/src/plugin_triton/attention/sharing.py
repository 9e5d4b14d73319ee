"""Which decode rows begin with the same pages, found on the host, and the numbers on the device that say so."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.batch import Int32
from plugin_triton.attention.tiles import MAX_PREFIXES, MIN_PREFIX_ROWS, MIN_PREFIX_TOKENS, PREFIX_BLOCK

Int64 = npt.NDArray[np.int64]


def shared_prefixes(page_table: Int32, seq_lens: Int32, page_size: int) -> list[tuple[Int64, int]]:
    """(rows, tokens in common) of rows that begin with the same whole pages, where reading those once pays; a row is in
    one of them at most, and has a token of its own besides. Most saving first."""
    if len(seq_lens) < MIN_PREFIX_ROWS or not page_table.shape[1]:
        return []
    first_pages, group_of_row, counts = np.unique(page_table[:, 0], return_inverse=True, return_counts=True)
    found: list[tuple[Int64, int]] = []
    for group in np.flatnonzero((counts >= MIN_PREFIX_ROWS) & (first_pages != 0)):
        rows = np.flatnonzero(group_of_row == group)
        most = (int(seq_lens[rows].min()) - 1) // page_size  # whole pages before the newest token
        table = page_table[rows, :most]
        same = (table == table[0]).all(0)
        pages = most if same.all() else int(same.argmin())
        tokens = pages * page_size // PREFIX_BLOCK * PREFIX_BLOCK
        if tokens >= MIN_PREFIX_TOKENS:
            found.append((rows, tokens))
    found.sort(key=lambda item: -item[1] * len(item[0]))
    return found[:MAX_PREFIXES]


class SharedRows:
    """For one number of rows: what `prefix` and `decode` read of common prefixes, at addresses that stay.

    tile_rows: rows of a tile of `prefix`. shared_lens [rows] int32, tile_ends [tiles], order [tiles * tile_rows].
    """

    def __init__(self, rows: int, tile_rows: int, device: torch.device) -> None:
        self.tile_rows = tile_rows
        self.tiles = rows // tile_rows + MAX_PREFIXES
        # Sections begin at multiples of 16 bytes: a kernel is compiled for what an address is divisible by.
        self._ends = -(-rows // 4) * 4
        self._order = self._ends + -(-self.tiles // 4) * 4
        self._host = np.zeros(self._order + self.tiles * tile_rows, np.int32)
        self._fill(self._host, [])
        self._device = torch.from_numpy(self._host.copy()).to(device)
        self.shared_lens = self._device[:rows]
        self.tile_ends = self._device[self._ends : self._ends + self.tiles]
        self.order = self._device[self._order :]

    def set(self, prefixes: list[tuple[Int64, int]]) -> None:
        """Have the device know of these, if it does not."""
        numbers = np.zeros_like(self._host)
        self._fill(numbers, prefixes)
        if np.array_equal(numbers, self._host):
            return
        self._host = numbers
        source = torch.from_numpy(numbers)
        if self._device.device.type == "cuda":
            source = source.pin_memory()  # the allocator keeps it until the copy is done
        self._device.copy_(source, non_blocking=True)

    def _fill(self, numbers: Int32, prefixes: list[tuple[Int64, int]]) -> None:
        ends = numbers[self._ends : self._ends + self.tiles]
        ends[:] = np.arange(self.tiles, dtype=np.int32) * self.tile_rows
        tile = 0
        for rows, tokens in prefixes:
            numbers[rows] = tokens
            for start in range(0, len(rows), self.tile_rows):
                some = rows[start : start + self.tile_rows]
                begin = tile * self.tile_rows
                numbers[self._order + begin : self._order + begin + len(some)] = some
                ends[tile] = begin + len(some)
                tile += 1
