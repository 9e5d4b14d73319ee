"""Sampling noise as a pure function of (seed, position, token id).

The Gumbel-max trick: arg max over tokens of `logit / temperature + g`, with independent Gumbel noise g, draws
from the softmax. Making g a hash of (seed, position, token id) instead of a random stream has three effects: the
draw does not depend on the batch or on the row; it does not depend on which candidates survived the filters (a
token keeps its noise); and a position can be drawn again, for replay or speculative verification.

Formulas: the row key is the splitmix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", 2014, constants of Stafford's mix 13 variant as in Vigna's splitmix64.c). The token hash is the 32-bit
finaliser of MurmurHash3 (Appleby, public domain), with the second key word put in between its two multiplications so
that all 64 bits of the key count. Integer arithmetic wraps in two's complement, so CPUs and GPUs give equal bits;
the two logarithms that follow may differ in the last place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN64 = np.uint64(0x9E3779B97F4A7C15)
_MIX64_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX64_B = np.uint64(0x94D049BB133111EB)


def _signed32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


_GOLDEN32 = _signed32(0x9E3779B1)  # odd, close to 2^32 divided by the golden ratio: spreads consecutive ids
_MURMUR_A = _signed32(0x85EBCA6B)
_MURMUR_B = _signed32(0xC2B2AE35)
# 31 hash bits to (0, 1): v = bits * _SCALE + _HALF. Small v keep their full resolution down to 2^-33; the largest,
# after rounding to float32, is 1 - 2^-23, so log1p(-v) is finite at both ends.
_SCALE = (1.0 - 2.0**-23) * 2.0**-31
_HALF = 2.0**-33


def row_keys(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Two key words for each row. seeds [R] uint64, positions [R]; returns [R, 2] int32."""
    with np.errstate(over="ignore"):
        keys = _mix64(_mix64(seeds + _GOLDEN64) + positions.astype(np.uint64) * _GOLDEN64)
    return keys.view(np.int32).reshape(-1, 2)


def _mix64(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX64_A
    z = (z ^ (z >> np.uint64(27))) * _MIX64_B
    return z ^ (z >> np.uint64(31))


def spread_ids(token_ids: torch.Tensor) -> torch.Tensor:
    """First stage of the hash, which depends on the token only: int32 of the same shape. For a whole vocabulary it
    is computed once and kept."""
    return token_ids.to(torch.int32) * _GOLDEN32


def hash_tokens(spread: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """32 hash bits for each (row, token). spread [V] or [R, K] int32, keys [R, 2] int32; returns [R, V or K] int32."""
    h = spread + keys[:, :1]
    h ^= (h >> 16).bitwise_and_(0xFFFF)  # the shift of a signed word fills with its sign: mask it away
    h *= _MURMUR_A
    h ^= keys[:, 1:]
    h ^= (h >> 13).bitwise_and_(0x7FFFF)
    h *= _MURMUR_B
    h ^= (h >> 16).bitwise_and_(0xFFFF)
    return h


def log_exponential(spread: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """log(E) with E exponentially distributed: the negative of Gumbel noise. Float32 in about [-22.9, 2.8]; shapes
    as in `hash_tokens`."""
    bits = (hash_tokens(spread, keys) >> 1).bitwise_and_(0x7FFFFFFF)
    v = bits.to(torch.float32).mul_(_SCALE).add_(_HALF)
    return v.neg_().log1p_().neg_().log_()
