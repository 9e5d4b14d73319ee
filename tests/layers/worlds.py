"""One sequence, one attention layer: a batch that a layer can be called with."""

from __future__ import annotations

import numpy as np
import torch

from core.interfaces.attention import AttentionConfig
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.spec import CacheGroupSpec, LayerSpec
from core.testing.dense_attention import DenseAttention


def one_sequence(layer: LayerSpec, group: CacheGroupSpec, length: int, *, ranks: int = 1) -> ForwardBatch:
    """A fresh prompt of `length` tokens through layer 0, planned."""
    rule = layer.attention
    assert rule is not None
    cpu = torch.device("cpu")
    kv_heads = max(1, group.num_kv_heads // ranks)
    config = AttentionConfig(
        group, {0: rule}, rule.num_heads // ranks, kv_heads, length, 2, torch.float32, cpu, 1, length, length
    )
    backend = DenseAttention(config)
    lengths = np.array([length], np.int32)
    layout = BatchLayout(
        page_size=length,
        num_decodes=0,
        q_lens=lengths,
        seq_lens=lengths,
        cu_q_lens=np.array([0, length], np.int32),
        page_table=np.array([[1]], np.int32),
        slot_mapping=torch.arange(length, 2 * length),
    )
    backend.plan(layout)
    tokens = torch.arange(length)
    return ForwardBatch(tokens, tokens, tokens[-1:], (layout,), (backend,), (backend.allocate()[0],))
