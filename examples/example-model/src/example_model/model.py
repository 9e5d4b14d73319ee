"""The module. Core calls `forward` with the tokens of many sequences in a row, `compute_logits` with rows it needs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.spec import LayerSpec, ModelSpec
from core.layers.attention import Attention
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.module import Layer
from example_model.config import Gpt2Config
from example_model.layers import ConvColumn, ConvQkv, ConvRow, LayerNorm


class Block(Layer):
    """x += attention(norm(x)); x += feed-forward(norm(x)). x [T, hidden_size]: the tokens of all sequences in a row."""

    def __init__(self, path: str, index: int, layer: LayerSpec, spec: ModelSpec, ctx: BuildContext) -> None:
        super().__init__()
        config, rule = spec.arch, layer.attention
        assert isinstance(config, Gpt2Config)
        assert rule is not None
        size = spec.hidden_size
        self.ln_1 = LayerNorm(size, config.norm_eps, ctx)
        self.c_attn = ConvQkv(f"{path}.c_attn", size, rule.num_heads, ctx)
        # The door to whatever attention backend was chosen. Which keys a token sees, and where they are, it knows.
        self.attention = Attention(index, layer.cache_group)
        self.c_proj = ConvRow(f"{path}.c_proj", size, size, ctx)
        self.ln_2 = LayerNorm(size, config.norm_eps, ctx)
        self.c_fc = ConvColumn(f"{path}.c_fc", size, config.inner_size, ctx)
        self.c_out = ConvRow(f"{path}.c_out", config.inner_size, size, ctx)
        self.approximate = config.activation
        self.num_heads = self.c_attn.num_heads  # of this rank
        self.head_dim = rule.head_dim

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        qkv = self.c_attn(self.ln_1(x)).view(-1, 3 * self.num_heads, self.head_dim)
        q, k, v = qkv.split(self.num_heads, 1)
        seen = self.attention(q, k, v, batch)
        x = x + self.c_proj(seen.reshape(-1, self.num_heads * self.head_dim))
        inner = F.gelu(self.c_fc(self.ln_2(x)), approximate=self.approximate)
        return x + self.c_out(inner)


class Gpt2(Layer):
    """Token and position embeddings, blocks, final norm, head (GPT-2's is the token embedding again)."""

    def __init__(self, spec: ModelSpec, ctx: BuildContext) -> None:
        super().__init__()
        config = spec.arch
        assert isinstance(config, Gpt2Config)
        # `ctx.layer`: a device may have its own in place of core's layer. Use it for every layer of core's.
        self.wte = ctx.layer(VocabEmbedding)("wte", spec.vocab_size, spec.hidden_size, ctx)
        self.wpe = ctx.layer(VocabEmbedding)("wpe", config.num_positions, spec.hidden_size, ctx)
        self.h = nn.ModuleList([Block(f"h.{i}", i, layer, spec, ctx) for i, layer in enumerate(spec.layers)])
        self.ln_f = LayerNorm(spec.hidden_size, config.norm_eps, ctx)
        tied = self.wte if spec.tie_word_embeddings else None
        self.lm_head = ctx.layer(LmHead)("lm_head", spec.vocab_size, spec.hidden_size, ctx, tied=tied)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        x = self.wte(batch.input_ids) + self.wpe(batch.positions)
        for block in self.h:
            x = block(x, batch)
        return self.ln_f(x)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden)
