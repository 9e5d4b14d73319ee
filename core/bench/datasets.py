"""Synthetic requests with a fixed seed: random, shared prefix, multi-turn."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# Short common words: text requests must tokenize to about as many tokens as words with any vocabulary.
_WORDS = tuple(
    """the of and to in is you that it he was for on are as with his they at be this have from or one had by word but
    not what all were we when your can said there use an each which she do how their if will up other about out many
    then them these so some her would make like him into time has look two more write go see number no way could
    people my than first water been call who oil its now find long down day did get come made may part""".split()
)


@dataclass(slots=True)
class Conversation:
    """One client's requests, in order. Each turn is either token ids (one turn) or user texts (chat)."""

    token_ids: list[int] | None = None
    turns: list[str] = field(default_factory=list)
    output_len: int = 128


def random_prompts(count: int, input_len: int, output_len: int, vocab_size: int, seed: int) -> list[Conversation]:
    """Independent prompts of `input_len` random token ids; ids below 3 are left to special tokens."""
    rng = random.Random(seed)
    return [
        Conversation([rng.randrange(3, vocab_size) for _ in range(input_len)], output_len=output_len)
        for _ in range(count)
    ]


def shared_prefix(
    count: int, groups: int, prefix_len: int, input_len: int, output_len: int, vocab_size: int, seed: int
) -> list[Conversation]:
    """`groups` common prefixes of `prefix_len` tokens, each followed by `input_len` tokens of one's own; the
    requests of different groups are interleaved."""
    rng = random.Random(seed)
    prefixes = [[rng.randrange(3, vocab_size) for _ in range(prefix_len)] for _ in range(groups)]
    return [
        Conversation(
            prefixes[i % groups] + [rng.randrange(3, vocab_size) for _ in range(input_len)], output_len=output_len
        )
        for i in range(count)
    ]


def multi_turn(count: int, num_turns: int, input_len: int, output_len: int, seed: int) -> list[Conversation]:
    """Chats: each turn adds `input_len` random words, and the reply joins the history of the next turn."""
    rng = random.Random(seed)
    return [
        Conversation(
            turns=[" ".join(rng.choice(_WORDS) for _ in range(input_len)) for _ in range(num_turns)],
            output_len=output_len,
        )
        for _ in range(count)
    ]
