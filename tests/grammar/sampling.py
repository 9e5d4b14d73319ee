"""Texts made at random under the masks of a grammar, as a model without any sense would write them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from core.interfaces.grammar import CompiledGrammar, Vocabulary

# (ids that may come next, number of tokens so far) -> one of them. A model's sampler can be put in its place.
Choose = Callable[[np.ndarray, int], int]

WORDS = (b"yes", b"no", b"true", b"null", b'{"', b'": ', b'", "', b'"}', b"12", b" ", b"ab", b"\xe4\xb8\xad", b"name",
         b"\\n", b"],", b"0.5", b"e+", b"-", b"2024-01-", b"a@b.c", b"https://")  # fmt: skip
EOS = 256
VOCABULARY = Vocabulary((*(bytes([byte]) for byte in range(256)), b"", *WORDS), (EOS,))
CLOSING = frozenset(i for i, token in enumerate(VOCABULARY.tokens) if token and set(token) <= set(b'"]}'))


def at_random(seed: int, patience: int = 40) -> Choose:
    """Any allowed token; after `patience` tokens mostly one that closes something, or the end."""
    draw = random.Random(seed)

    def choose(allowed: np.ndarray, num_tokens: int) -> int:
        ids = allowed.tolist()
        if EOS in ids and draw.random() < (0.3 if num_tokens < patience else 0.9):
            return EOS
        closing = [token for token in ids if token in CLOSING]
        if closing and draw.random() < (0.1 if num_tokens < patience else 0.95):
            return draw.choice(closing)
        printable = [token for token in ids if len(VOCABULARY.tokens[token]) > 1 or 32 <= token < 127]
        return draw.choice(printable if printable and draw.random() < 0.9 else ids)

    return choose


def sample(
    grammar: CompiledGrammar, choose: Choose, vocabulary: Vocabulary = VOCABULARY, max_tokens: int = 400
) -> bytes | None:
    """A text that ended by itself, None if it did not within `max_tokens`. Fails where nothing may come next."""
    matcher = grammar.matcher()
    mask = np.zeros(vocabulary.mask_words, np.uint32)
    text = b""
    for num_tokens in range(max_tokens):
        matcher.fill_mask(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        assert len(allowed), f"nothing may follow {text!r}"
        token = choose(allowed, num_tokens)
        assert matcher.accept(token), f"the mask allowed {token} after {text!r}, and it is not taken"
        if matcher.terminated:
            return text
        text += vocabulary.tokens[token]
    return None
