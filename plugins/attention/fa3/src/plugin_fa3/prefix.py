"""Keys that many decodes have in common, such as those of one system prompt: read once for all of them.

The rows of a step attend to the common keys as if they were one sequence, and each to the rest of its own; both results
are joined by their sums of exponentials (cascade attention). Steps with and without common keys are recorded apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.attention import AttentionConfig
from core.interfaces.batch import BatchLayout
from plugin_fa3.providers.base import Rows

Int32 = npt.NDArray[np.int32]

# A second call and joining cost some microseconds a layer. What is saved must be worth them in bytes not read.
_WORTH_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class CommonKeys:
    """rows: all decodes as one sequence over the common pages. skipped [N] int32: of each decode's keys, those at the
    beginning that it sees through `rows`; 0 for decodes that do not share."""

    rows: Rows
    skipped: torch.Tensor


def common_pages(page_table: Int32, seq_lens: Int32, page_size: int) -> tuple[npt.NDArray[np.bool_], int]:
    """Which rows begin with the same pages, the most that do, and how many pages that is; 0 pages if fewer than two.
    Each keeps a token of its own beyond them."""
    first_pages, counts = np.unique(page_table[:, 0], return_counts=True)
    members = page_table[:, 0] == first_pages[counts.argmax()]
    if counts.max() < 2:
        return members, 0
    most = int((seq_lens[members].min() - 1) // page_size)
    table = page_table[members, :most]
    differs = (table != table[0]).any(0)
    return members, int(differs.argmax()) if differs.any() else most


@dataclass(frozen=True, slots=True)
class Sharing:
    """members [N] bool: decodes that begin with the same `tokens` keys."""

    members: npt.NDArray[np.bool_]
    tokens: int


class CommonPrefixes:
    """What the decodes of each step have in common. Buffers of recorded steps are kept, by number of rows."""

    def __init__(self, config: AttentionConfig) -> None:
        self._config = config
        widest = max((spec.head_dim + spec.v_head_dim for spec in config.layers.values()), default=0)
        self._token_bytes = config.num_kv_heads * widest * config.dtype.itemsize
        self._kept: dict[int, tuple[torch.Tensor, CommonKeys]] = {}

    def search(self, layout: BatchLayout) -> Sharing | None:
        """What is worth a call of its own, or None. Host work only."""
        num_rows = layout.num_decodes
        if num_rows < 2 or layout.cu_q_lens[num_rows] != num_rows:
            return None
        members, pages = common_pages(layout.page_table[:num_rows], layout.seq_lens[:num_rows], layout.page_size)
        tokens = pages * layout.page_size
        worth = (int(members.sum()) - 1) * tokens * self._token_bytes >= _WORTH_BYTES
        return Sharing(members, tokens) if worth else None

    def prepare(self, sharing: Sharing, decodes: Rows, *, captured: bool) -> CommonKeys:
        """Bring it to the device. decodes: the step's, over pages."""
        assert decodes.page_table is not None
        num_rows, leader = len(sharing.members), int(sharing.members.argmax())
        # One copy to the device: skipped keys of each row, all rows as one sequence, number of common keys.
        numbers = np.zeros(num_rows + 3, np.int32)
        numbers[:num_rows][sharing.members] = sharing.tokens
        numbers[num_rows:] = 0, num_rows, sharing.tokens
        table = decodes.page_table[leader : leader + 1]
        if not captured:
            return self._common(self._upload(numbers), table, decodes.max_k)
        if num_rows not in self._kept:
            self._kept[num_rows] = self._keep(num_rows, decodes)
        buffer, kept = self._kept[num_rows]
        buffer.copy_(self._upload(numbers))
        assert kept.rows.page_table is not None
        kept.rows.page_table.copy_(table)
        return kept

    def _keep(self, num_rows: int, decodes: Rows) -> tuple[torch.Tensor, CommonKeys]:
        """Buffers of recorded steps of that many rows: the numbers, and what refers to them."""
        assert decodes.page_table is not None
        # A step may be recorded in inference mode and planned outside of it, where tensors made in it are read-only.
        with torch.inference_mode(False):
            buffer = torch.zeros(num_rows + 3, dtype=torch.int32, device=self._config.device)
            table = torch.zeros(1, decodes.page_table.shape[1], dtype=torch.int32, device=self._config.device)
            return buffer, self._common(buffer, table, decodes.max_k)

    def _common(self, numbers: torch.Tensor, table: torch.Tensor, max_k: int) -> CommonKeys:
        num_rows = len(numbers) - 3
        whole, common = numbers[num_rows : num_rows + 2], numbers[num_rows + 2 :]
        return CommonKeys(Rows(whole, num_rows, max_k, common, table, causal=False), numbers[:num_rows])

    def _upload(self, numbers: Int32) -> torch.Tensor:
        tensor = torch.from_numpy(numbers)
        if self._config.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._config.device, non_blocking=True)
