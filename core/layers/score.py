"""The head of a model that scores texts: labels of a classifier, or the one reward of a reward model."""

from __future__ import annotations

import torch

from core.interfaces.build import BuildContext
from core.interfaces.quant import LinearPart, LinearShape
from core.layers.linear import LinearBase


class ScoreHead(LinearBase):
    """hidden [N, hidden_size] -> scores [N, num_labels]. Small, so every rank holds all of it."""

    def __init__(self, path: str, hidden_size: int, num_labels: int, ctx: BuildContext, *, bias: bool = False) -> None:
        part = LinearPart("", num_labels, 0, num_labels)
        super().__init__(LinearShape(path, hidden_size, (part,), bias, hidden_size), ctx)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self, x)
