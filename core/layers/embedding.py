"""Token embedding and language-model head, split over ranks by vocabulary rows."""

from __future__ import annotations

import torch

from core.interfaces.build import BuildContext
from core.interfaces.errors import WeightError
from core.interfaces.quant import LinearPart, LinearShape
from core.layers.linear import LinearBase
from core.layers.module import NO_EXPERT, Slot, WeightModule, check_tensor, empty_parameter
from core.layers.unquantized import UnquantizedLinear, copy_rows


def vocabulary_part(vocab_size: int, ctx: BuildContext) -> LinearPart:
    """This rank's rows: ceil(vocab_size / ranks) each, the last rank's padded with zero rows."""
    rows = -(-vocab_size // ctx.tp.size)
    return LinearPart("", rows, 0, vocab_size, ctx.tp.rank * rows)


class VocabEmbedding(WeightModule):
    """ids [T] int64 -> [T, hidden_size]. Each rank looks up its rows, the others' ids give zero, the sum is all."""

    def __init__(self, path: str, vocab_size: int, hidden_size: int, ctx: BuildContext) -> None:
        super().__init__()
        self.path = path
        self.place = vocabulary_part(vocab_size, ctx)
        self.hidden_size = hidden_size
        self.weight = empty_parameter(self.place.out_features, hidden_size, dtype=ctx.dtype, device=ctx.device)
        self.op = ctx.ops["embedding"]
        self.all_reduce = ctx.tp.all_reduce if ctx.tp.size > 1 else None

    def expected(self) -> set[Slot]:
        return {("weight", "", NO_EXPERT)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        check_tensor(tensor, (self.place.full_out_features, self.hidden_size))
        copy_rows(self.weight.data, self.place, tensor)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.all_reduce is None:
            return self.op(ids, self.weight)
        local = ids - self.place.shard_offset
        outside = (local < 0) | (local >= self.place.out_features)
        rows = self.op(local.masked_fill(outside, 0), self.weight)
        return self.all_reduce(rows.masked_fill(outside.unsqueeze(-1), 0))


class LmHead(LinearBase):
    """hidden [S, hidden_size] -> logits [S, vocab_size], gathered over ranks.

    `tied`: the embedding whose weight is used. Then a checkpoint may leave the head out; if it has one, it must
    equal the embedding (checked when loading ends), because otherwise config.json is wrong about the tie.
    """

    weight: torch.nn.Parameter

    def __init__(
        self, path: str, vocab_size: int, hidden_size: int, ctx: BuildContext, *, tied: VocabEmbedding | None = None
    ) -> None:
        shape = LinearShape(path, hidden_size, (vocabulary_part(vocab_size, ctx),), False, hidden_size)
        # A tied head shows the embedding's numbers, which no quantization method may repack.
        super().__init__(shape, ctx, UnquantizedLinear() if tied is not None else None)
        self.vocab_size = vocab_size
        self.all_gather = ctx.tp.all_gather if ctx.tp.size > 1 else None
        self.tied = tied is not None
        self.duplicate: torch.Tensor | None = None
        if tied is not None:
            self.register_parameter("weight", tied.weight)

    def expected(self) -> set[Slot]:
        return set() if self.tied else super().expected()

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        return set() if self.tied and suffix == "weight" else super().covers(suffix, part, expert)

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        if not self.tied:
            super().load(suffix, part, tensor, expert)
            return
        check_tensor(tensor, (self.vocab_size, self.shape.in_features))
        self.duplicate = tensor

    def finish(self) -> None:
        if self.duplicate is not None:
            copy = torch.empty_like(self.weight)
            copy_rows(copy, self.shape.parts[0], self.duplicate)
            self.duplicate = None
            if not torch.equal(copy, self.weight):
                raise WeightError(
                    f"{self.shape.path}.weight differs from the token embedding, yet config.json says they are tied",
                    hint='set "tie_word_embeddings": false in config.json if the head is meant to be separate',
                )
        super().finish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.method.apply(self, x)
        return logits if self.all_gather is None else self.all_gather(logits, -1)[..., : self.vocab_size]
