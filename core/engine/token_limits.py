"""Tokens that one request allows, and sequences of tokens that it does not: a mask for each of its steps.

Set aside what a grammar says: this looks at tokens, not at text.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from core.interfaces.grammar import TokenMask
from core.interfaces.params import SamplingParams

_ALL = np.uint32(0xFFFFFFFF)


class TokenLimits:
    """State of one text. num_words: 32-bit words of a mask over the vocabulary."""

    __slots__ = ("_allowed", "_ends", "_longest", "_tail")

    def __init__(self, sampling: SamplingParams, num_words: int) -> None:
        self._allowed = _mask(sampling.allowed_token_ids, num_words) if sampling.allowed_token_ids else None
        # What a forbidden sequence begins with -> what may not follow then.
        ends: dict[tuple[int, ...], list[int]] = {}
        for sequence in sampling.bad_token_ids:
            ends.setdefault(sequence[:-1], []).append(sequence[-1])
        self._ends = {before: ~_mask(after, num_words) for before, after in ends.items()}
        self._longest = max(map(len, ends), default=0)
        self._tail: tuple[int, ...] = ()

    @staticmethod
    def of(sampling: SamplingParams, num_words: int) -> TokenLimits | None:
        """None for a request that allows every token."""
        return TokenLimits(sampling, num_words) if sampling.allowed_token_ids or sampling.bad_token_ids else None

    def apply(self, mask: TokenMask) -> None:
        """Take out of `mask` [num_words] what may not come next."""
        if self._allowed is not None:
            mask &= self._allowed
        for length in range(min(self._longest, len(self._tail)) + 1):
            left = self._ends.get(self._tail[len(self._tail) - length :])
            if left is not None:
                mask &= left

    def take(self, token: int) -> None:
        """A token was generated."""
        if self._longest:
            self._tail = (*self._tail, token)[-self._longest :]


def _mask(ids: Iterable[int], num_words: int) -> TokenMask:
    words = np.zeros(num_words, np.uint32)
    index = np.fromiter(ids, np.int64)
    np.bitwise_or.at(words, index // 32, np.uint32(1) << (index % 32).astype(np.uint32))
    return words


def everything(mask: TokenMask) -> None:
    """Allow every token."""
    mask[...] = _ALL
