"""Into how many parts the keys of a sequence are split at most, so that few rows still keep the whole GPU busy.

A part more costs a pass over partial results. Which sequence is really split, and how far, the kernels decide on the
device by the lengths; this is the bound, and what buffers are made for.
"""

from __future__ import annotations

import torch

from plugin_fa3.plan import Piece

# Of an H200, for devices that cannot be asked.
_NUM_PROCESSORS = 132
# From this share of busy multiprocessors on, nothing is gained by splitting.
_ENOUGH = 0.8
_MAX_SPLITS = 32


class Splits:
    """asked: the operator's bound, 0 for none."""

    def __init__(self, asked: int, num_kv_heads: int, device: torch.device) -> None:
        self._asked = asked
        self._num_kv_heads = num_kv_heads
        self._processors = _NUM_PROCESSORS
        if device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(device).multi_processor_count

    def of_decodes(self, piece: Piece) -> int:
        """By the number of rows alone, not by lengths: a recorded step keeps it."""
        return self._asked or self._by_tiles(piece.blocks)

    def of_prefills(self, piece: Piece) -> int:
        return self._by_tiles(piece.blocks)

    def _by_tiles(self, blocks: int) -> int:
        tiles = blocks * self._num_kv_heads
        if tiles >= _ENOUGH * self._processors:
            return 1
        return min(_MAX_SPLITS, -(-self._processors // tiles))
