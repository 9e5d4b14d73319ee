"""Token masks in the sampler: what they forbid, whichever rows they are of, and what yields to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import CPU, admission, draw, make_sampler

from core.interfaces.params import SamplingParams
from core.interfaces.step import TokenMasks
from core.ops.reference import REFERENCES
from core.ops.sampling import mask_tokens
from core.runner.sampler import Sampler
from core.runner.transfer import Transfer

GREEDY = SamplingParams(temperature=0.0)
KINDS = (GREEDY, SamplingParams(temperature=1.3), SamplingParams(top_k=3), SamplingParams(logit_bias={1: 9.0}))


def masks_of(rows: list[int], allowed: list[set[int]], vocab: int) -> TokenMasks:
    words = np.zeros((len(rows), -(-vocab // 32)), np.uint32)
    for row, ids in enumerate(allowed):
        for token in ids:
            words[row, token // 32] |= np.uint32(1 << (token % 32))
    return TokenMasks(np.array(rows, np.int32), words)


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("own_op", [False, True])
def test_only_allowed_tokens_and_other_rows_are_as_they_were(own_op: bool, data: st.DataObject) -> None:
    vocab, num = data.draw(st.integers(2, 70)), data.draw(st.integers(1, 5))
    params = [data.draw(st.sampled_from(KINDS)) for _ in range(num)]
    rows = sorted(data.draw(st.sets(st.integers(0, num - 1), min_size=1)))
    allowed = [data.draw(st.sets(st.integers(0, vocab - 1), min_size=1)) for _ in rows]
    logits = torch.randn(num, vocab, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    sampler = make_sampler(params, vocab)
    if own_op:  # as of a device with an operation of its own
        sampler = Sampler(num, vocab, Transfer(CPU), {**REFERENCES, "mask_tokens": lambda *args: mask_tokens(*args)})
        for slot, own in enumerate(params):
            sampler.admit(admission(slot, own, seed=slot))
    slots, positions = range(num), [3] * num
    before = logits.clone()
    got = draw(sampler, logits, slots, positions, masks_of(rows, allowed, vocab)).tokens.tolist()
    assert torch.equal(logits, before)
    held = before.clone()
    for row, ids in zip(rows, allowed, strict=True):
        forbidden = [token for token in range(vocab) if token not in ids]
        held[row, forbidden] = float("-inf")
        assert got[row] in ids
    free = draw(make_sampler(params, vocab), before, slots, positions).tokens.tolist()
    assert [got[row] for row in range(num) if row not in rows] == [free[row] for row in range(num) if row not in rows]
    for row in rows:
        if params[row] is GREEDY:
            assert got[row] == int(held[row].argmax())


def test_min_tokens_yields_where_nothing_but_an_end_is_possible() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=10)
    sampler = Sampler(3, 40, Transfer(CPU))
    for slot in range(3):
        sampler.admit(admission(slot, params, eos=(5, 33)))
    logits = torch.zeros(3, 40)
    logits[:, 5] = 9.0
    masks = masks_of([0, 2], [{5}, {5, 7}], 40)
    sampled = draw(sampler, logits, range(3), [2] * 3, masks)
    assert sampled.tokens.tolist()[::2] == [5, 7]  # an end where it must be, and none where something else may come
    assert sampled.tokens.tolist()[1] not in (5, 33)
    assert torch.isfinite(sampled.best).all()


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    sampler = make_sampler([SamplingParams(temperature=0.0, logprobs=1)], 3)
    free = draw(sampler, logits, [0], [1]).logprobs
    held = draw(sampler, logits, [0], [1], masks_of([0], [{0}], 3))
    assert held.tokens.tolist() == [0]
    assert held.logprobs is not None
    assert free is not None
    assert held.logprobs.top_ids.tolist() == free.top_ids.tolist() == [[2]]
    assert held.logprobs.chosen.item() == pytest.approx(float(torch.log_softmax(logits, -1)[0, 0]))
