"""The steps that a runner takes before the first request: small ones, so that what happens once has happened, and the
largest there can be, so that a device can see how much memory it takes. All write to the null page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.step import Admission, StepPlan
from core.runner.config import RunnerConfig

_TOKENS = 8
# What takes the most memory: a whole vocabulary sorted for each row, counts of penalties, log-probabilities.
_LARGEST = SamplingParams(
    top_p=0.9, min_p=0.01, presence_penalty=0.1, repetition_penalty=1.1, logprobs=20, prompt_logprobs=1
)


def small_plans(config: RunnerConfig) -> Iterator[StepPlan]:
    """A short prefill and a decode, greedy and drawn. Of a model that generates nothing, prefills: it never decodes."""
    tokens = np.zeros(min(_TOKENS, config.context_length), np.int32)
    for params in (SamplingParams(temperature=0.0), SamplingParams(top_k=8, top_p=0.9, logprobs=1)):
        admission = _admission(config, 0, len(tokens), params)
        for step in range(2 if config.spec.task == "generate" else 1):
            yield StepPlan(
                step=-1,
                slots=np.zeros(1, np.int32),
                num_decodes=step,
                q_lens=np.array([1 if step else len(tokens)], np.int32),
                seq_lens=np.array([len(tokens) + step], np.int32),
                samples=np.ones(1, np.bool_),
                admissions=[] if step else [admission],
            )


def largest_plan(config: RunnerConfig) -> StepPlan:
    """As many rows as a step can have, sharing as many tokens as it can have, each drawn in the way that takes the
    most memory."""
    num_rows = min(config.max_running, config.max_step_tokens)
    num_tokens = min(config.max_step_tokens, num_rows * config.context_length)
    lens = np.full(num_rows, num_tokens // num_rows, np.int32)
    lens[: num_tokens % num_rows] += 1
    return StepPlan(
        step=-1,
        slots=np.arange(num_rows, dtype=np.int32),
        num_decodes=0,
        q_lens=lens,
        seq_lens=lens,
        samples=np.ones(num_rows, np.bool_),
        admissions=[_admission(config, slot, length, _LARGEST) for slot, length in enumerate(lens.tolist())],
    )


def _admission(config: RunnerConfig, slot: int, num_tokens: int, params: SamplingParams) -> Admission:
    # A model that generates nothing may have no head to try.
    head: Literal["none", "scores"] = "scores" if config.spec.task == "classify" else "none"
    pooling = None if config.spec.task == "generate" else PoolingParams(head=head)
    return Admission(slot, -1, np.zeros(num_tokens, np.int32), num_tokens, params, 0, pooling=pooling)
