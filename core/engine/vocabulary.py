"""The vocabulary of a tokenizer as grammar backends and logit processors want it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.frontend.tokenizer import Tokenizer
from core.interfaces.grammar import Vocabulary


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """pieces: bytes of every token id, of special tokens too. plain: without special tokens, for texts: what they stand
    for is left out of an answer, so a text may not be spelled with them. tagged: with them, but for the ends of a text,
    for structures: formats of tool calls have markers that are special tokens."""

    pieces: Sequence[bytes]
    plain: Vocabulary
    tagged: Vocabulary

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> Vocabularies:
        """vocab_size: width of the model's logits. eos_token_ids: ids that end a text for the engine; those that the
        tokenizer knows are added."""
        ends = tuple(t for t in dict.fromkeys((*eos_token_ids, *tokenizer.eos_token_ids)) if t < vocab_size)
        pieces = [tokenizer.bytes_of(token) for token in range(vocab_size)]
        return cls.from_pieces(pieces, ends, tokenizer.special_ids)

    @classmethod
    def from_pieces(cls, pieces: Sequence[bytes], ends: tuple[int, ...], special: frozenset[int]) -> Vocabularies:
        """pieces: bytes by token id. special: ids of special tokens, which may include the `ends` of a text."""
        tagged = Vocabulary(_without(pieces, frozenset(ends)), ends)
        if special <= frozenset(ends):
            return cls(pieces, tagged, tagged)
        return cls(pieces, Vocabulary(_without(pieces, special.union(ends)), ends), tagged)


def _without(pieces: Sequence[bytes], ids: frozenset[int]) -> tuple[bytes, ...]:
    return tuple(b"" if token in ids else piece for token, piece in enumerate(pieces))


class TokenizerVocabulary:
    """The `TokenVocabulary` of logit processors. vocab_size: width of the model's logits. eos_token_ids: ids that end a
    text for the engine; those that the tokenizer knows are added."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        ends = (*eos_token_ids, *tokenizer.eos_token_ids)
        self._tokenizer = tokenizer
        self.size = vocab_size
        self.eos_token_ids = tuple(token for token in dict.fromkeys(ends) if token < vocab_size)

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokenizer.bytes_of(token_id)

    def id_of(self, text: str) -> int | None:
        encoded = self.encode(text)
        return encoded[0] if len(encoded) == 1 else None

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
