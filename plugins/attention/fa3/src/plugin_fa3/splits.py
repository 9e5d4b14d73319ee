"""Into how many parts the keys of a sequence are split at most, so that few sequences still keep the whole GPU busy.

This is the bound that buffers are made for. Which sequence is really split, and how far, the kernels decide on the
device, by the lengths of all. So a bound larger than a step needs costs next to nothing: on an H200, up to 1 % at 256
equal sequences, while at one sequence of 4096 tokens 16 parts are three times as fast as one.
"""

from __future__ import annotations

import torch

from core.interfaces.attention import AttentionConfig
from plugin_fa3.plan import Piece, cached_dims

# Of an H200, for devices that cannot be asked.
_NUM_PROCESSORS = 132
_MAX_SPLITS = 32
# Of the partial results of one call; recorded steps hold them for good.
_MAX_BYTES = 64 << 20
# Prefills fill the GPU with query rows instead: from this share of busy multiprocessors on, parts gain nothing.
_ENOUGH = 0.8


class Splits:
    """asked: the operator's bound for decodes, 0 for none."""

    def __init__(self, asked: int, config: AttentionConfig) -> None:
        self._asked = asked
        self._num_kv_heads = config.num_kv_heads
        self._group = config.num_heads // config.num_kv_heads
        widest = max((cached_dims(spec)[1] for spec in config.layers.values()), default=1)
        self._row_bytes = config.num_heads * widest * 4
        self._processors = _NUM_PROCESSORS
        if config.device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(config.device).multi_processor_count

    def of_decodes(self, piece: Piece) -> int:
        """By the number of rows alone, not by lengths: a recorded step keeps it."""
        if self._asked:
            return self._asked
        room = _MAX_BYTES // (self._row_bytes * piece.num_rows)
        return max(1, min(self._to_fill(1), room))

    def of_common(self, num_rows: int) -> int:
        """For keys that `num_rows` decodes have in common."""
        return self._to_fill(-(-num_rows * self._group // 128))

    def of_prefills(self, piece: Piece) -> int:
        return 1 if piece.blocks * self._num_kv_heads >= _ENOUGH * self._processors else self._to_fill(piece.blocks)

    def _to_fill(self, blocks: int) -> int:
        """Parts with which `blocks` tiles of each KV head occupy every multiprocessor."""
        return min(_MAX_SPLITS, -(-self._processors // (blocks * self._num_kv_heads)))
