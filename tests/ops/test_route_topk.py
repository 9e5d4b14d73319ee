"""Expert choice against its definition, one token and one expert at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import reference as ops


def by_definition(
    logits: list[float], bias: list[float], k: int, *, scoring: str, num_groups: int, topk_groups: int, group_score: str
) -> dict[int, float]:
    """Chosen experts with their scores."""
    row = torch.tensor(logits, dtype=torch.float64)
    scores = (row.sigmoid() if scoring == "sigmoid" else row.softmax(0)).tolist()
    ranks = [score + b for score, b in zip(scores, bias, strict=True)]
    size = len(ranks) // num_groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(num_groups)]
    count = 2 if group_score == "top2" else 1
    groups.sort(key=lambda members: -sum(sorted((ranks[e] for e in members), reverse=True)[:count]))
    candidates = [e for members in groups[:topk_groups] for e in members]
    return {e: scores[e] for e in sorted(candidates, key=lambda e: -ranks[e])[:k]}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_route_topk(data: st.DataObject) -> None:
    num_groups, size = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    topk_groups = data.draw(st.integers(1, num_groups))
    k = data.draw(st.integers(1, topk_groups * size))
    scoring = data.draw(st.sampled_from(["softmax", "sigmoid"]))
    group_score = data.draw(st.sampled_from(["top2", "max"]))
    renormalize, biased = data.draw(st.booleans()), data.draw(st.booleans())
    scale = data.draw(st.sampled_from([1.0, 2.5]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    tokens, experts = data.draw(st.integers(0, 5)), num_groups * size
    logits = torch.randn(tokens, experts, generator=generator)
    bias = torch.randn(experts, generator=generator) * 0.3 if biased else None
    weights, ids = ops.route_topk(
        logits, bias, k, scoring=scoring, renormalize=renormalize, num_groups=num_groups, topk_groups=topk_groups,
        group_score=group_score, scale=scale,
    )  # fmt: skip
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int64)
    assert weights.shape == ids.shape == (tokens, k)
    for row in range(tokens):
        wanted = by_definition(
            logits[row].tolist(), bias.tolist() if bias is not None else [0.0] * experts, k, scoring=scoring,
            num_groups=num_groups, topk_groups=topk_groups, group_score=group_score,
        )  # fmt: skip
        total = sum(wanted.values()) if renormalize else 1.0
        got = dict(zip(ids[row].tolist(), weights[row].tolist(), strict=True))
        assert got == pytest.approx({e: scale * score / total for e, score in wanted.items()}, rel=1e-5)


def test_scores_that_are_all_zero_give_finite_weights() -> None:
    weights, _ = ops.route_topk(torch.full((1, 4), -200.0), None, 2, scoring="sigmoid", renormalize=True)
    assert weights.tolist() == [[0.0, 0.0]]


def test_without_extras_it_is_topk_softmax() -> None:
    logits = torch.randn(6, 9)
    for renormalize in (False, True):
        weights, ids = ops.topk_softmax(logits, 3, renormalize)
        ours, chosen = ops.route_topk(logits, None, 3, scoring="softmax", renormalize=renormalize)
        torch.testing.assert_close(ours.sort(-1).values, weights.sort(-1).values)
        assert torch.equal(chosen.sort(-1).values, ids.sort(-1).values)
