"""The sampler: arg max, distributions, independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import CPU, admission, draw, expected_probs, make_sampler, many_draws

from core.interfaces.params import SamplingParams
from core.runner import sampler as sampler_module
from core.runner.sampler import Sampler
from core.runner.transfer import Transfer

GREEDY = SamplingParams(temperature=0.0)


def chi_square(tokens: np.ndarray, probs: np.ndarray) -> tuple[float, int]:
    """Statistic and degrees of freedom; bins expected fewer than 5 times are joined."""
    counts = np.bincount(tokens, minlength=len(probs))
    assert counts[probs == 0].sum() == 0, "a token outside the kept set was drawn"
    expected = probs * len(tokens)
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    return float(((observed - expected)[keep] ** 2 / expected[keep]).sum()), int(keep.sum()) - 1


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=2.5),
        SamplingParams(top_k=7),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02),
    ],
)
def test_draws_follow_the_filtered_softmax(params: SamplingParams) -> None:
    torch.manual_seed(3)
    logits = torch.randn(60) * 2
    probs = expected_probs(logits.numpy(), params)
    statistic, freedom = chi_square(many_draws(params, logits, 40_000), probs)
    # Wilson-Hilferty: the cube root of chi-square over its freedom is nearly normal. 4 standard deviations.
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < limit


def test_draws_are_uniform_over_equal_logits_and_over_seeds() -> None:
    num, vocab_size = 40_000, 50
    rows = make_sampler([SamplingParams()], vocab_size)
    tokens = np.empty(num, np.int64)
    for seed in range(0, num, 8):
        rows.admit(admission(0, SamplingParams(), seed=seed))
        tokens[seed : seed + 8] = draw(rows, torch.zeros(8, vocab_size), [0] * 8, range(8)).tokens.numpy()
    statistic, freedom = chi_square(tokens, np.full(vocab_size, 1 / vocab_size))
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_draws_at_neighbouring_positions_are_independent() -> None:
    tokens = many_draws(SamplingParams(), torch.zeros(8), 64_001)
    pairs = tokens[:-1] * 8 + tokens[1:]
    statistic, freedom = chi_square(pairs, np.full(64, 1 / 64))
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_greedy_rows_are_arg_max(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 100).to(dtype)
    out = draw(make_sampler([GREEDY] * 5, 100), logits, range(5), [1] * 5)
    assert torch.equal(logits.gather(1, out.tokens[:, None])[:, 0], logits.max(-1)[0])
    assert out.logprobs is None


def test_top_k_of_one_is_greedy() -> None:
    logits = torch.randn(1, 100)
    out = draw(make_sampler([SamplingParams(temperature=5.0, top_k=1)], 100), logits, [0], [1])
    assert out.tokens.item() == logits.argmax().item()


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([-1, 1, 3, 10, 60, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.sampled_from([None, {1: 2.0, 5: -3.0}]),
    min_tokens=st.sampled_from([0, 4]),
    max_tokens=st.just(100),
    stop_token_ids=st.sampled_from([(), (2, 3)]),
    logprobs=st.sampled_from([None, 0, 3]),
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(params_strategy, min_size=1, max_size=7),
    data=st.data(),
    coarse=st.booleans(),
    vocab_size=st.sampled_from([17, 300]),
)
def test_a_row_gets_the_same_token_alone_and_in_any_batch_and_order(
    rows: list[SamplingParams], data: st.DataObject, coarse: bool, vocab_size: int
) -> None:
    """Three steps, so that the counts of penalised rows take part; coarse logits have many ties."""
    order = data.draw(st.permutations(range(len(rows))))
    together, alone = (
        make_sampler(rows, vocab_size),
        [make_sampler([row], vocab_size, [i]) for i, row in enumerate(rows)],
    )
    generator = torch.Generator().manual_seed(len(rows))
    for position in range(1, 4):
        logits = torch.randn(len(rows), vocab_size, generator=generator) * 2
        if coarse:
            logits = logits.round()
        batch = draw(together, logits[list(order)], order, [position] * len(rows)).tokens.tolist()
        single = [draw(alone[i], logits[i : i + 1], [0], [position]).tokens.item() for i in order]
        assert batch == single


@settings(max_examples=80, deadline=None)
@given(params=params_strategy, seed=st.integers(0, 2**32), coarse=st.booleans(), scale=st.sampled_from([0.1, 1.0, 6.0]))
def test_drawn_tokens_are_in_the_kept_set(params: SamplingParams, seed: int, coarse: bool, scale: float) -> None:
    if params.greedy:
        return
    plain = SamplingParams(
        temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
    )  # fmt: skip
    logits = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * scale
    logits = logits.round() if coarse else logits
    probs = expected_probs(logits.numpy(), plain)
    tokens = many_draws(plain, logits, 200, seed)
    assert (probs[tokens] > 0).all()


@pytest.mark.parametrize("params", [SamplingParams(top_k=5), SamplingParams(top_p=0.5), SamplingParams(min_p=0.3)])
@pytest.mark.parametrize("ties", [False, True])
def test_candidates_and_whole_vocabulary_draw_the_same(
    params: SamplingParams, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate short cut is only a short cut, also when ties overflow it and when the nucleus does."""
    logits = torch.randn(40, 3000)
    if ties:
        logits = (logits * 0.5).round()  # hundreds of tokens share the k-th value
    slots, positions = [0] * 40, list(range(40))
    short = draw(make_sampler([params], 3000), logits, slots, positions).tokens
    monkeypatch.setattr(sampler_module, "_candidate_count", lambda k, needs_all, vocab_size: vocab_size)
    full = draw(make_sampler([params], 3000), logits, slots, positions).tokens
    assert torch.equal(short, full)
    assert len(set(short.tolist())) > 3


@pytest.mark.parametrize("ties", [False, True])
def test_the_way_without_host_reads_draws_the_same(ties: bool) -> None:
    """What accelerators run (no data-dependent control flow), here on the CPU."""
    rows = [
        SamplingParams(top_k=5), SamplingParams(top_p=0.5), SamplingParams(min_p=0.3), SamplingParams(),
        SamplingParams(temperature=0.0), SamplingParams(top_k=40, top_p=0.7, temperature=2.0),
    ]  # fmt: skip
    for some in (rows, rows[:1], [rows[0], rows[5]], rows[1:2], rows[2:3]):
        logits = torch.randn(len(some), 2000) * 2
        logits = logits.round() if ties else logits
        tokens = []
        for direct in (True, False):
            sampler = Sampler(len(some), 2000, Transfer(CPU, direct=direct))
            for slot, params in enumerate(some):
                sampler.admit(admission(slot, params, seed=slot))
            tokens.append([draw(sampler, logits, range(len(some)), [p] * len(some)).tokens.tolist() for p in range(20)])
        assert tokens[0] == tokens[1]


def test_top_k_above_the_candidate_limit() -> None:
    params = SamplingParams(top_k=1500)
    logits = torch.arange(3000.0) / 3000  # nearly flat, so all kept tokens have a chance
    tokens = many_draws(params, logits, 4000)
    assert tokens.min() >= 1500
    assert len(np.unique(tokens)) > 1000


def test_other_seeds_and_positions_give_other_tokens() -> None:
    logits = torch.zeros(1, 1000)
    sampler = make_sampler([SamplingParams()] * 2, 1000, seeds=[1, 2])
    seen = {draw(sampler, logits, [slot], [p]).tokens.item() for slot in (0, 1) for p in range(50)}
    assert len(seen) > 85


def test_negative_and_unsigned_spellings_of_a_seed_agree() -> None:
    sampler = make_sampler([SamplingParams()] * 2, 1000, seeds=[-1, 2**64 - 1])
    a, b = draw(sampler, torch.zeros(2, 1000), [0, 1], [4, 4]).tokens.tolist()
    assert a == b


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.5)])
def test_rows_with_unusable_logits_are_found_and_spare_the_others(bad: float, params: SamplingParams) -> None:
    logits = torch.randn(3, 50)
    good = draw(make_sampler([params] * 3, 50), logits, range(3), [1] * 3).tokens
    logits[1, 7] = bad
    out = draw(make_sampler([params] * 3, 50), logits, range(3), [1] * 3)
    assert torch.isfinite(out.best).tolist() == [True, False, True]
    assert out.tokens[[0, 2]].tolist() == good[[0, 2]].tolist()
    assert 0 <= out.tokens[1] < 50


def test_an_infinity_does_not_hide_behind_a_forbidden_id() -> None:
    params = SamplingParams(min_tokens=1, stop_token_ids=(7,), temperature=0.0)
    logits = torch.randn(1, 50)
    logits[0, 7] = float("inf")
    assert not torch.isfinite(draw(make_sampler([params], 50), logits, [0], [1]).best).any()


def test_masked_tokens_are_no_fault() -> None:
    logits = torch.full((1, 50), float("-inf"))
    logits[0, [3, 4]] = 1.0
    for params in (SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=20)):
        out = draw(make_sampler([params], 50), logits, [0], [1])
        assert torch.isfinite(out.best).all()
        assert out.tokens.item() in (3, 4)


def test_logits_are_not_changed() -> None:
    rows = [SamplingParams(logit_bias={1: 5.0}, min_tokens=3, stop_token_ids=(2,)), SamplingParams(top_k=3)]
    logits = torch.randn(2, 30)
    before = logits.clone()
    draw(make_sampler(rows, 30), logits, [0, 1], [1, 1])
    assert torch.equal(logits, before)
