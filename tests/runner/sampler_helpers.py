"""A sampler with rows admitted from SamplingParams, and the filters written down plainly in numpy float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, TokenMasks
from core.runner.sampler import Sampled, Sampler
from core.runner.transfer import Transfer

CPU = torch.device("cpu")


def admission(
    slot: int,
    params: SamplingParams,
    *,
    tokens: Sequence[int] = (0,),
    num_prompt: int | None = None,
    seed: int = 0,
    eos: tuple[int, ...] = (),
) -> Admission:
    num_prompt = len(tokens) if num_prompt is None else num_prompt
    return Admission(slot, slot, np.array(tokens, np.int32), num_prompt, params, seed, eos)


def make_sampler(rows: Sequence[SamplingParams], vocab_size: int, seeds: Sequence[int] | None = None) -> Sampler:
    """Row i in slot i; seed i unless given."""
    sampler = Sampler(max(1, len(rows)), vocab_size, Transfer(CPU))
    for slot, params in enumerate(rows):
        sampler.admit(admission(slot, params, seed=seeds[slot] if seeds is not None else slot))
    return sampler


def draw(
    sampler: Sampler,
    logits: torch.Tensor,
    slots: Sequence[int],
    positions: Sequence[int],
    masks: TokenMasks | None = None,
) -> Sampled:
    inputs = sampler.inputs(np.array(slots, np.int32), np.array(positions, np.int32))
    return sampler.sample(logits, inputs, masks)


def many_draws(params: SamplingParams, logits: torch.Tensor, num: int, seed: int = 7) -> np.ndarray:
    """Tokens of one row of logits [V] at `num` positions."""
    sampler = make_sampler([params], len(logits), [seed])
    tokens = draw(sampler, logits.expand(num, -1), [0] * num, range(1, num + 1)).tokens
    return tokens.numpy()


def expected_probs(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Exact distribution after temperature, top-k, top-p, min-p. Float64, one row, loops allowed."""
    x = logits.astype(np.float32) / np.float32(params.temperature)
    x = x.astype(np.float64)
    keep = np.ones(len(x), bool)
    if 0 < params.top_k < len(x):
        keep &= x >= np.sort(x)[::-1][params.top_k - 1]
    p = np.where(keep, np.exp(x - x.max()), 0.0)
    if params.top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        mass, smallest = 0.0, p[order[0]]
        for token in order:
            if mass >= params.top_p * p.sum():
                break
            mass += p[token]
            smallest = p[token]
        keep &= p >= smallest
    if params.min_p > 0.0:
        keep &= x >= x.max() + float(np.log(np.float32(params.min_p)))
    p = np.where(keep, p, 0.0)
    return p / p.sum()
