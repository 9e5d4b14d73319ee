"""The pre-norm decoder that most causal language models are: what model plugins put their layers into."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.spec import ModelSpec
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.module import Layer, entry_after_norm
from core.layers.norm import RmsNorm
from core.layers.score import ScoreHead


class DecoderLayer(Layer):
    """x += attention(norm(x)); x += mlp(norm(x)).

    The two sums are carried as (x, residual), both [T, hidden_size], so that each is one fused operation with the
    norm that follows it, and with the product behind that where the device has it (`after_norm`). norm_offset: as in
    RmsNorm.
    """

    def __init__(
        self,
        path: str,
        self_attn: nn.Module,
        mlp: nn.Module,
        hidden_size: int,
        norm_eps: float,
        ctx: BuildContext,
        *,
        norm_offset: float = 0.0,
    ) -> None:
        super().__init__()
        norm = partial(ctx.layer(RmsNorm), offset=norm_offset)
        self.input_layernorm = norm(f"{path}.input_layernorm", hidden_size, norm_eps, ctx)
        self.self_attn = self_attn
        self.post_attention_layernorm = norm(f"{path}.post_attention_layernorm", hidden_size, norm_eps, ctx)
        self.mlp = mlp
        self._attend = entry_after_norm(self_attn)
        self._feed = entry_after_norm(mlp)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = self._attend(self.input_layernorm, x, residual, batch)
        return self._feed(self.post_attention_layernorm, x, residual)


class SandwichDecoderLayer(DecoderLayer):
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x))): norms before and after each."""

    def __init__(
        self,
        path: str,
        self_attn: nn.Module,
        mlp: nn.Module,
        hidden_size: int,
        norm_eps: float,
        ctx: BuildContext,
        *,
        norm_offset: float = 0.0,
    ) -> None:
        super().__init__(path, self_attn, mlp, hidden_size, norm_eps, ctx, norm_offset=norm_offset)
        norm = partial(ctx.layer(RmsNorm), offset=norm_offset)
        self.post_self_attn_layernorm = norm(f"{path}.post_self_attn_layernorm", hidden_size, norm_eps, ctx)
        self.post_mlp_layernorm = norm(f"{path}.post_mlp_layernorm", hidden_size, norm_eps, ctx)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = self._attend(self.input_layernorm, x, residual, batch)
        x = self.post_self_attn_layernorm(x)
        x, residual = self._feed(self.post_attention_layernorm, x, residual)
        return self.post_mlp_layernorm(x), residual


class CausalDecoder(Layer):
    """Embedding, decoder layers, final norm, and the head that `spec.task` wants: a language-model head, one that
    scores labels, or none.

    make_layer(index, path): builds layer `index`; `path` is its dotted name. Module names follow those that Hugging
    Face checkpoints use (without "model."), fused ones aside, so that rules and skip lists read alike.
    embed_scale: factor on the embedding, rounded to the compute type as checkpoints are trained with. logit_softcap:
    logits are softcap * tanh(logits / softcap). norm_offset: as in RmsNorm.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ctx: BuildContext,
        norm_eps: float,
        make_layer: Callable[[int, str], DecoderLayer],
        *,
        embed_scale: float | None = None,
        logit_softcap: float | None = None,
        norm_offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_tokens = ctx.layer(VocabEmbedding)("embed_tokens", spec.vocab_size, spec.hidden_size, ctx)
        self.layers = nn.ModuleList([make_layer(i, f"layers.{i}") for i in range(len(spec.layers))])
        self.norm = ctx.layer(RmsNorm)("norm", spec.hidden_size, norm_eps, ctx, offset=norm_offset)
        self.lm_head: LmHead | None = None
        self.score: ScoreHead | None = None
        if spec.task == "generate":
            tied = self.embed_tokens if spec.tie_word_embeddings else None
            self.lm_head = ctx.layer(LmHead)("lm_head", spec.vocab_size, spec.hidden_size, ctx, tied=tied)
        elif spec.task == "classify":
            self.score = ctx.layer(ScoreHead)("score", spec.hidden_size, len(spec.labels), ctx)
        self.logit_softcap = logit_softcap
        self.embed_scale = None if embed_scale is None else torch.tensor(embed_scale, dtype=ctx.dtype).item()
        self._sequence = tuple(self.layers)  # walking a ModuleList costs more than walking a tuple

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states [T, hidden_size] after the final norm."""
        x = self.embed_tokens(batch.input_ids)
        if self.embed_scale is not None:
            x = x * self.embed_scale
        residual: torch.Tensor | None = None
        for layer in self._sequence:
            x, residual = layer(x, residual, batch)
        return self.norm(x) if residual is None else self.norm.add(x, residual)[0]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [S, hidden_size] -> logits [S, vocab_size], gathered over ranks."""
        assert self.lm_head is not None, "the model was built without a language-model head"
        logits = self.lm_head(hidden)
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits

    def compute_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [N, hidden_size] -> scores [N, labels]."""
        assert self.score is not None, "the model has no classification head"
        return self.score(hidden)
