"""The pre-norm decoder that most causal language models are: what model plugins put their layers into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.spec import ModelSpec
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.module import Layer
from core.layers.norm import RmsNorm


class DecoderLayer(Layer):
    """x += attention(norm(x)); x += mlp(norm(x)).

    The two sums are carried as (x, residual), both [T, hidden_size], so that each is one fused operation with the
    norm that follows it.
    """

    def __init__(
        self, path: str, self_attn: nn.Module, mlp: nn.Module, hidden_size: int, norm_eps: float, ctx: BuildContext
    ) -> None:
        super().__init__()
        self.input_layernorm = ctx.layer(RmsNorm)(f"{path}.input_layernorm", hidden_size, norm_eps, ctx)
        self.self_attn = self_attn
        self.post_attention_layernorm = ctx.layer(RmsNorm)(
            f"{path}.post_attention_layernorm", hidden_size, norm_eps, ctx
        )
        self.mlp = mlp

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            x, residual = self.input_layernorm(x), x
        else:
            x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, batch)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class SandwichDecoderLayer(DecoderLayer):
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x))): norms before and after each."""

    def __init__(
        self, path: str, self_attn: nn.Module, mlp: nn.Module, hidden_size: int, norm_eps: float, ctx: BuildContext
    ) -> None:
        super().__init__(path, self_attn, mlp, hidden_size, norm_eps, ctx)
        norm = ctx.layer(RmsNorm)
        self.post_self_attn_layernorm = norm(f"{path}.post_self_attn_layernorm", hidden_size, norm_eps, ctx)
        self.post_mlp_layernorm = norm(f"{path}.post_mlp_layernorm", hidden_size, norm_eps, ctx)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            x, residual = self.input_layernorm(x), x
        else:
            x, residual = self.input_layernorm.add(x, residual)
        x = self.post_self_attn_layernorm(self.self_attn(x, batch))
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.post_mlp_layernorm(self.mlp(x)), residual


class CausalDecoder(Layer):
    """Embedding, decoder layers, final norm, language-model head.

    make_layer(index, path): builds layer `index`; `path` is its dotted name. Module names follow those that Hugging
    Face checkpoints use (without "model."), fused ones aside, so that rules and skip lists read alike.
    """

    def __init__(
        self, spec: ModelSpec, ctx: BuildContext, norm_eps: float, make_layer: Callable[[int, str], DecoderLayer]
    ) -> None:
        super().__init__()
        self.embed_tokens = ctx.layer(VocabEmbedding)("embed_tokens", spec.vocab_size, spec.hidden_size, ctx)
        self.layers = nn.ModuleList([make_layer(i, f"layers.{i}") for i in range(len(spec.layers))])
        self.norm = ctx.layer(RmsNorm)("norm", spec.hidden_size, norm_eps, ctx)
        tied = self.embed_tokens if spec.tie_word_embeddings else None
        self.lm_head = ctx.layer(LmHead)("lm_head", spec.vocab_size, spec.hidden_size, ctx, tied=tied)
        self._sequence = tuple(self.layers)  # walking a ModuleList costs more than walking a tuple

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states [T, hidden_size] after the final norm."""
        x = self.embed_tokens(batch.input_ids)
        residual: torch.Tensor | None = None
        for layer in self._sequence:
            x, residual = layer(x, residual, batch)
        return self.norm(x) if residual is None else self.norm.add(x, residual)[0]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [S, hidden_size] -> logits [S, vocab_size], gathered over ranks."""
        return self.lm_head(hidden)
