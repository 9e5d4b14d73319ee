"""One step's batch on the device. Always variable-length over a paged KV cache, decodes first.

One shape serves decode, prefill, mixed batches and (later) speculative verification, which is a decode
row with q_len > 1. Nothing here is global: the batch is passed down through `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from core.interfaces.attention import AttentionBackend

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class BatchLayout:
    """Where the tokens of a step stand, for one cache group. N sequences, T tokens, P table columns.

    Rows 0 .. num_decodes-1 are decodes. Host arrays and device tensors hold the same numbers; a backend
    plans from the host side and never synchronises to read the device side.

    q_lens [N]: new tokens of each sequence. seq_lens [N]: KV length including them.
    cu_q_lens [N+1]: prefix sum of q_lens; sequence i owns token rows cu_q_lens[i]:cu_q_lens[i+1].
    page_table [N, P]: page i of a sequence holds its tokens i*page_size .. (i+1)*page_size-1. Entries past
        a sequence's last page are 0 and must not be read as keys.
    slot_mapping [T]: flat KV slot (page * page_size + offset) that each new token's K and V go to; of the integer
        type that the backend's capabilities name.
    captured: the step is recorded or replayed, see `AttentionBackend.plan`. It has decodes only, the last of which may
        be padding: token 0 at position 0, page-table row 0, slot 0, all in the null page. variant: of a captured
        step, what `AttentionBackend.variant` said.
    """

    page_size: int
    num_decodes: int
    q_lens: Int32
    seq_lens: Int32
    cu_q_lens: Int32
    page_table: Int32
    slot_mapping: torch.Tensor  # [T], device
    device_page_table: torch.Tensor | None = None  # [N, P] int32
    device_seq_lens: torch.Tensor | None = None  # [N] int32
    device_cu_q_lens: torch.Tensor | None = None  # [N+1] int32
    captured: bool = False
    variant: int = 0

    @property
    def num_seqs(self) -> int:
        return len(self.q_lens)

    @property
    def num_tokens(self) -> int:
        return int(self.cu_q_lens[-1])


@dataclass(slots=True)
class ForwardBatch:
    """What `model.forward` gets.

    input_ids [T] int64, positions [T] int64 (position of each token in its sequence).
    logits_rows [S] int64: rows of the hidden states whose logits are sampled.
    attention: backend of each cache group; whoever runs the model calls `plan_attention` first.
    kv: `kv[layer]` = the buffers of that layer, as the backend of its group laid them out.
    extra: per-feature tensors (multimodal, adapters), by name.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    logits_rows: torch.Tensor
    layouts: tuple[BatchLayout, ...]
    attention: tuple[AttentionBackend, ...]
    kv: tuple[tuple[torch.Tensor, ...], ...]
    extra: dict[str, Any] = field(default_factory=dict)

    def plan_attention(self) -> None:
        """Let every backend prepare for this batch. Once a step, before the model's forward."""
        for backend, layout in zip(self.attention, self.layouts, strict=True):
            backend.plan(layout)
