"""Log-probabilities: of the model's own logits, for rows that ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampler_helpers import draw, make_sampler

from core.interfaces.params import SamplingParams
from core.interfaces.step import Logprobs
from core.runner import logprobs
from core.runner.sampler import Sampled


def host(out: Sampled, num_rows: int) -> Logprobs:
    assert out.logprobs is not None
    assert out.asking is not None
    assert out.wanted is not None
    return logprobs.spread(out.logprobs, out.asking, out.wanted, num_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_log_softmax_of_the_raw_logits(dtype: torch.dtype) -> None:
    rows = [
        SamplingParams(logprobs=3, temperature=0.3, logit_bias={4: 9.0}, min_tokens=2, stop_token_ids=(1,)),
        SamplingParams(),
        SamplingParams(logprobs=5, top_k=2, presence_penalty=1.0),
        SamplingParams(logprobs=0, temperature=0.0),
    ]
    logits = (torch.randn(4, 50) * 3).to(dtype)
    out = draw(make_sampler(rows, 50), logits, range(4), [2] * 4)
    values = host(out, 4)
    oracle = torch.log_softmax(logits.float(), -1)
    top, top_ids = oracle.topk(5)
    for row, wanted in ((0, 3), (2, 5), (3, 0)):
        np.testing.assert_allclose(values.chosen[row], oracle[row, out.tokens[row]], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(values.top[row, :wanted], top[row, :wanted], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            oracle[row, values.top_ids[row, :wanted].astype(np.int64)], top[row, :wanted], rtol=1e-5
        )
        assert (np.diff(values.top[row, :wanted]) <= 0).all()
        assert len(set(values.top_ids[row, :wanted].tolist())) == wanted
        assert np.isnan(values.top[row, wanted:]).all()
        assert (values.top_ids[row, wanted:] == -1).all()
    assert np.isnan(values.chosen[1])
    assert (values.top_ids[1] == -1).all()
    assert top_ids.shape == values.top_ids.shape


def test_more_alternatives_than_tokens() -> None:
    out = draw(make_sampler([SamplingParams(logprobs=20)], 6), torch.randn(1, 6), [0], [1])
    assert sorted(host(out, 1).top_ids[0].tolist()) == list(range(6))


def test_nothing_is_computed_when_nobody_asks() -> None:
    assert draw(make_sampler([SamplingParams()], 6), torch.randn(1, 6), [0], [1]).logprobs is None
