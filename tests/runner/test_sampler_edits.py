"""Bias, penalties, min_tokens; transformers' processors and plain formulas as oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampler_helpers import admission, draw, make_sampler, many_draws
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission
from core.ops.sampling import sampling_threshold
from core.runner.penalties import TokenCounts, apply_penalties, penalty_arrays
from core.runner.sampler import Sampler
from core.runner.sampling_table import SamplingTable
from core.runner.transfer import Transfer

VOCAB = 40
TRANSFER = Transfer(torch.device("cpu"))


def penalised(logits: torch.Tensor, admissions: list[Admission]) -> torch.Tensor:
    table, counts = SamplingTable(8, VOCAB), TokenCounts(VOCAB, TRANSFER)
    for entry in admissions:
        table.admit(entry)
        counts.admit(entry)
    out = logits.clone()
    rows = np.arange(len(admissions))
    slots = np.array([entry.slot for entry in admissions], np.int32)
    apply_penalties(out, counts, TRANSFER.upload(*penalty_arrays(table, counts, rows, slots)))
    return out


def test_repetition_penalty_is_transformers() -> None:
    logits = torch.randn(3, VOCAB)
    texts, scales = ([1, 2, 3, 3], [4, 4, 9, 30], [0, 39, 5, 5]), (1.5, 0.7, 1.1)
    admissions = [
        admission(slot, SamplingParams(repetition_penalty=scale), tokens=tokens, num_prompt=2)
        for slot, (tokens, scale) in enumerate(zip(texts, scales, strict=True))
    ]
    ours = penalised(logits, admissions)
    for row, (tokens, scale) in enumerate(zip(texts, scales, strict=True)):
        oracle = RepetitionPenaltyLogitsProcessor(scale)(torch.tensor([tokens]), logits[row : row + 1])
        torch.testing.assert_close(ours[row : row + 1], oracle)


def test_frequency_and_presence_count_generated_tokens_only() -> None:
    logits = torch.randn(2, VOCAB)
    both = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    rows = [
        admission(2, both, tokens=[7, 7, 7, 8, 8, 9], num_prompt=3),
        admission(5, SamplingParams(presence_penalty=-1.0), tokens=[1, 2], num_prompt=1),
    ]  # fmt: skip
    expected = logits.clone()
    expected[0, 8] -= 2 * 0.5 + 0.25
    expected[0, 9] -= 0.5 + 0.25
    expected[1, 2] += 1.0
    torch.testing.assert_close(penalised(logits, rows), expected)


def test_sampled_tokens_are_counted() -> None:
    """A strong presence penalty makes greedy sampling walk down the ranking."""
    sampler = make_sampler([SamplingParams(temperature=0.0, presence_penalty=2.0), SamplingParams(temperature=0.0)], 10)
    logits = torch.linspace(0.0, 1.0, 10).expand(2, -1)
    tokens = [draw(sampler, logits, [1, 0], [p, p]).tokens.tolist() for p in range(1, 6)]
    assert tokens == [[9, 9], [9, 8], [9, 7], [9, 6], [9, 5]]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_new_request_in_a_slot_inherits_nothing(temperature: float) -> None:
    busy = SamplingParams(
        temperature=temperature, presence_penalty=2.0, repetition_penalty=1.8, logit_bias={3: 50.0}, min_tokens=9,
        stop_token_ids=(9,), logprobs=2, top_k=2, top_p=0.1, min_p=0.5,
    )  # fmt: skip
    logits = torch.linspace(0.5, 1.0, 10)[None]
    reused, fresh = make_sampler([busy], 10), make_sampler([], 10)
    for position in range(1, 4):
        draw(reused, logits, [0], [position])
    for params in (
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, presence_penalty=0.1),
        SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(9,)),
        SamplingParams(top_k=8),
        SamplingParams(min_p=0.3),
        SamplingParams(),
    ):
        for sampler in (reused, fresh):
            sampler.admit(admission(0, params, seed=5))
        for position in range(1, 4):
            a, b = (draw(sampler, logits, [0], [position]) for sampler in (reused, fresh))
            assert a.tokens.tolist() == b.tokens.tolist()
            assert a.logprobs is None


def test_counts_of_a_preempted_request_are_those_of_the_unbroken_run() -> None:
    params = SamplingParams(temperature=1.0, frequency_penalty=1.0, repetition_penalty=1.2)
    torch.manual_seed(0)
    logits = torch.randn(8, VOCAB)
    unbroken = Sampler(1, VOCAB, TRANSFER)
    unbroken.admit(admission(0, params, tokens=[1, 2], seed=3))
    tokens = [draw(unbroken, logits[p : p + 1], [0], [2 + p]).tokens.item() for p in range(8)]
    resumed = Sampler(3, VOCAB, TRANSFER)
    resumed.admit(admission(2, params, tokens=[1, 2, *tokens[:4]], num_prompt=2, seed=3))
    assert [draw(resumed, logits[p : p + 1], [2], [2 + p]).tokens.item() for p in range(4, 8)] == tokens[4:]


def test_logit_bias_reaches_only_its_row() -> None:
    sampler = make_sampler([SamplingParams(temperature=0.0, logit_bias={3: 100.0, 4: -100.0}), SamplingParams()], 10)
    logits = torch.zeros(2, 10)
    assert draw(sampler, logits, [0, 1], [1, 1]).tokens[0] == 3
    alone = make_sampler([SamplingParams()], 10, [1])
    assert draw(sampler, logits, [0, 1], [1, 1]).tokens[1] == draw(alone, logits[:1], [0], [1]).tokens[0]


def test_bias_comes_before_temperature() -> None:
    tokens = many_draws(SamplingParams(temperature=0.5, logit_bias={1: 1.0}), torch.zeros(2), 20_000)
    assert abs(tokens.mean() - 1 / (1 + np.exp(-2.0))) < 0.01


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_holds_back_stop_ids(ignore_eos: bool) -> None:
    params = SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=(8,), ignore_eos=ignore_eos)
    sampler = make_sampler([], 10)
    sampler.admit(admission(0, params, tokens=[1, 1], eos=(9,)))
    logits = torch.linspace(0.0, 1.0, 10)[None]
    tokens = [draw(sampler, logits, [0], [p]).tokens.item() for p in range(2, 7)]
    held = [9] * 3 if ignore_eos else [7] * 3
    assert tokens == [*held, 9, 9]


def test_ids_outside_the_vocabulary_are_left_out() -> None:
    params = SamplingParams(
        temperature=0.0, logit_bias={99: 5.0}, min_tokens=5, stop_token_ids=(99,), presence_penalty=1.0
    )  # fmt: skip
    sampler = make_sampler([], 10)
    sampler.admit(admission(0, params, tokens=[1, 99], num_prompt=1, eos=(77,)))
    assert draw(sampler, torch.linspace(0.0, 1.0, 10)[None], [0], [2]).tokens.item() == 9


@pytest.mark.parametrize("top_k", [0, 5, 30])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_threshold_keeps_what_transformers_keeps(top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    """transformers applies min-p before or after top-p depending on the version; as thresholds the order is the same
    because each is relative to the most likely token or to the rank."""
    logits = torch.randn(20, 200, generator=torch.Generator().manual_seed(1)) * 2
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scaled = logits / temperature
    torch.testing.assert_close(scores, scaled)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    limit = sampling_threshold(
        scaled, torch.full((20,), top_k), torch.full((20,), top_p, dtype=torch.float64), torch.full((20,), min_p),
        max_k=top_k, any_without_k=top_k == 0, any_top_p=top_p < 1,
    )  # fmt: skip
    assert torch.equal(scaled >= limit[:, None], torch.isfinite(scores))
