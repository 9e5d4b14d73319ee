"""Texts that may not be generated, as tokens."""

from __future__ import annotations

import msgspec

from core.frontend.tokenizer import Tokenizer
from core.interfaces.params import SamplingParams


def with_bad_tokens(sampling: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """`sampling`, with the tokens of its bad words: each word as it stands, and as it stands behind a space. Other
    ways to cut a word are not forbidden. Raises RequestError for a text that is not valid Unicode."""
    if not sampling.bad_words:
        return sampling
    cut = (
        tuple(tokenizer.encode(text, add_special_tokens=False))
        for word in sampling.bad_words
        for text in (word, f" {word}")
    )
    return msgspec.structs.replace(sampling, bad_token_ids=tuple(dict.fromkeys(filter(None, cut))))
