"""top-k, top-p and min-p, as one threshold per row.

Each filter keeps the tokens whose scaled logit is at least some value, so together they keep those at or above the
largest of the three. Tokens equal to the threshold are kept, all of them: which of two equal logits survives must
not depend on how a sort happened to order them, or the text would depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_NEG_INF = float("-inf")


@dataclass(frozen=True, slots=True)
class FilterParams:
    """Filters of R rows on the device.

    top_k [R] int64, 0 is off. top_p [R] float64, 1 is off. min_p [R] float32, 0 is off.
    any_top_p: whether some row has a top_p below 1 (known on the host).
    """

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    any_top_p: bool

    def rows(self, index: torch.Tensor) -> FilterParams:
        """The parameters of some of the rows."""
        return FilterParams(self.top_k[index], self.top_p[index], self.min_p[index], self.any_top_p)


def threshold(ranked: torch.Tensor, params: FilterParams, total: torch.Tensor | None) -> torch.Tensor:
    """The smallest scaled logit that each row keeps.

    ranked [R, K] float32: the K largest scaled logits of each row, descending; K covers every top_k.
    total [R] float64: sum of exp(x - max) over the row, used by rows without top_k; None if K is the vocabulary or
    no row needs it. Returns [R] float32. If a row's answer equals ranked[:, -1] and K is not the whole vocabulary,
    there may be tokens below K that belong to the kept set.

    top-p follows Holtzman et al. 2019: the smallest set of most likely tokens, among those top-k left, whose share
    reaches top_p. min-p: at least min_p times the likelihood of the most likely token.
    """
    best = ranked[:, :1]
    last = ranked.shape[1] - 1
    kth = ranked.gather(1, (params.top_k - 1).clamp(0, last)[:, None])
    kth = kth.masked_fill((params.top_k == 0)[:, None], _NEG_INF)
    result = torch.maximum(kth, best + params.min_p.log()[:, None])
    if params.any_top_p:
        weights = (ranked - best).double().exp_().masked_fill_(ranked < kth, 0.0)
        mass = weights.sum(1)
        if total is not None:
            mass = torch.where(params.top_k == 0, total, mass)
        before = weights.cumsum(1) - weights
        kept = (before < (params.top_p * mass)[:, None]).sum(1, keepdim=True)
        nucleus = ranked.gather(1, (kept - 1).clamp(0, last))
        result = torch.maximum(result, nucleus.masked_fill((params.top_p >= 1.0)[:, None], _NEG_INF))
    return result[:, 0]


def row_mass(scaled: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Sum of exp(x - max) of whole rows. scaled [R, V] float32, best [R, 1]; returns [R] float64."""
    return (scaled - best).exp_().sum(1, dtype=torch.float64)
