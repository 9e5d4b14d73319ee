"""Noise: bits against plain integers, range, quality."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.ops import sampling
from core.runner import noise

M32, M64 = 2**32 - 1, 2**64 - 1


def python_bits(seed: int, position: int, token: int) -> int:
    """The documented formulas in Python integers."""

    def mix64(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & M64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & M64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix64(mix64(seed + golden & M64) + position * golden & M64)
    h = token * 0x9E3779B1 + (key & M32) & M32
    h = (h ^ h >> 16) * 0x85EBCA6B & M32
    h ^= key >> 32
    h = (h ^ h >> 13) * 0xC2B2AE35 & M32
    return h ^ h >> 16


def bits(seed: int, position: int, tokens: torch.Tensor) -> torch.Tensor:
    keys = noise.row_keys(np.array([seed], np.uint64), np.array([position], np.int32))
    return sampling.hash_tokens(sampling.spread_ids(tokens), torch.from_numpy(keys))[0]


@given(st.integers(0, M64), st.integers(0, 2**31 - 1), st.integers(0, 2**20))
def test_bits_are_the_documented_formula(seed: int, position: int, token: int) -> None:
    assert int(bits(seed, position, torch.tensor([token]))) & M32 == python_bits(seed, position, token)


def test_vector_and_scalar_code_agree() -> None:
    whole = bits(12345, 77, torch.arange(1003))
    assert [int(b) & M32 for b in whole] == [python_bits(12345, 77, token) for token in range(1003)]


def test_extreme_hashes_give_finite_noise() -> None:
    h = torch.tensor([0, 1, 2, -1, -2, 2**31 - 1, -(2**31)], dtype=torch.int32)
    v = ((h >> 1) & 0x7FFFFFFF).to(torch.float32) * sampling._SCALE + sampling._HALF
    assert ((v > 0) & (v < 1)).all()
    loss = v.neg().log1p().neg().log()
    assert torch.isfinite(loss).all()
    assert loss.min() > -23


def test_noise_is_gumbel() -> None:
    keys = noise.row_keys(np.arange(4, dtype=np.uint64), np.full(4, 9, np.int32))
    gumbel = -sampling.log_exponential(sampling.spread_ids(torch.arange(200_000)), torch.from_numpy(keys)).double()
    assert abs(gumbel.mean() - 0.5772156649) < 0.01
    assert abs(gumbel.var() - math.pi**2 / 6) < 0.03
    ordered = gumbel.flatten().sort()[0]
    exact = torch.exp(-torch.exp(-ordered))
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (exact - steps).abs().max() < 2 / math.sqrt(len(ordered))  # Kolmogorov-Smirnov


def test_every_bit_of_seed_position_and_token_matters() -> None:
    """Flipping one input bit flips each output bit about half of the time (avalanche)."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 150_000, 400))
    base = bits(99, 1000, tokens)
    variants = [bits(99 ^ (1 << bit), 1000, tokens) for bit in range(0, 64, 3)]
    variants += [bits(99, 1000 ^ (1 << bit), tokens) for bit in range(20)]
    variants += [bits(99, 1000, tokens ^ (1 << bit)) for bit in range(17)]
    for variant in variants:
        flipped = (base ^ variant).numpy().view(np.uint32)
        rate = np.unpackbits(flipped.view(np.uint8).reshape(-1, 4), axis=1).mean(axis=0)
        assert rate.min() > 0.3
        assert rate.max() < 0.7


def test_both_key_words_take_part() -> None:
    spread = sampling.spread_ids(torch.arange(100))
    a, b, c = (sampling.hash_tokens(spread, torch.tensor([key], dtype=torch.int32)) for key in ([5, 6], [5, 7], [4, 6]))
    assert (a != b).float().mean() > 0.95
    assert (a != c).float().mean() > 0.95
