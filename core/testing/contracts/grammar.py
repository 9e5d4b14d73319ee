"""GrammarContract: the laws of structured output.

Subclass it in a test module, name the plugin and give grammars:

    class TestMine(GrammarContract):
        name = "mine"
        samples = (
            GrammarSample(GrammarSource("choice", '["yes", "no"]'), accepts=("yes", "no"), rejects=("maybe", "ye")),
        )
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from core.interfaces.errors import RequestError
from core.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarMatcher, GrammarSource, Vocabulary
from core.testing.contracts.base import Contract
from core.testing.contracts.grammar_structures import BROKEN_STRUCTURES, STRUCTURES

EOS = 256
# Every byte, then the end of the text, then longer tokens, so that texts can be cut in several ways.
_WORDS = (b"yes", b"no", b"true", b"false", b"null", b'{"', b'": ', b'"}', b"12", b" ", b"ab", b"\xe4\xb8\xad")
VOCABULARY = Vocabulary((*(bytes([byte]) for byte in range(256)), b"", *_WORDS), (EOS,))


@dataclass(frozen=True, slots=True)
class GrammarSample:
    """A grammar, texts that it allows as a whole, and texts that it does not."""

    source: GrammarSource
    accepts: Sequence[str]
    rejects: Sequence[str] = ()


class GrammarContract(Contract):
    """The mask says exactly what `accept` takes; rolling back undoes exactly; texts end where the grammar lets them."""

    kind = "grammar"

    samples: ClassVar[Sequence[GrammarSample]] = ()
    """At least one grammar of every kind that the backend takes."""

    unsupported: ClassVar[Sequence[GrammarSource]] = ()
    """Sources that must be refused, e.g. a schema with a feature that the backend lacks. Broken ones are added."""

    def backend(self, vocabulary: Vocabulary = VOCABULARY) -> GrammarBackend:
        made = self.plugin()(vocabulary, self.context())
        assert isinstance(made, GrammarBackend)
        return made

    def all_samples(self) -> Iterator[GrammarSample]:
        """Those given, and one of every kind of structure for backends that take structures."""
        yield from self.samples
        if "structural_tag" in self.plugin().kinds:
            for tree, accepts, rejects in STRUCTURES:
                yield GrammarSample(GrammarSource("structural_tag", json.dumps(tree)), accepts, rejects)

    def compiled(self) -> Iterator[tuple[GrammarSample, CompiledGrammar]]:
        backend = self.backend()
        for sample in self.all_samples():
            yield sample, backend.compile(sample.source)

    def test_every_kind_has_a_sample(self) -> None:
        missing = self.plugin().kinds - {sample.source.kind for sample in self.all_samples()}
        assert not missing, f"samples lack a grammar of kind {', '.join(sorted(missing))}"

    def test_texts_however_they_are_cut(self) -> None:
        for sample, grammar in self.compiled():
            for text, wanted in [(t, True) for t in sample.accepts] + [(t, False) for t in sample.rejects]:
                for seed in range(4):
                    tokens = tokenize(text, seed)
                    got = takes(grammar.matcher(), [*tokens, EOS])
                    assert got == wanted, f"{sample.source} took {text!r} as {tokens}: {got}"

    def test_the_mask_is_what_accept_takes(self) -> None:
        for sample, grammar in self.compiled():
            for text in sample.accepts:
                matcher = grammar.matcher()
                outside = [-1, len(VOCABULARY.tokens), len(VOCABULARY.tokens) + 1000]
                assert not any(matcher.accept(token) for token in outside), "ids outside of the vocabulary are taken"
                for token in [*tokenize(text, 1), EOS]:
                    allowed = mask_of(matcher)
                    for other in range(len(VOCABULARY.tokens)):
                        taken = matcher.accept(other)
                        if taken:
                            matcher.rollback(1)
                        assert taken == allowed[other], f"{sample.source} before {token}: token {other}"
                    assert matcher.accept(token), f"{sample.source}: token {token} of {text!r}"
                assert not mask_of(matcher).any(), f"{sample.source}: tokens are allowed after the end"

    def test_every_word_of_the_mask_is_written(self) -> None:
        for sample, grammar in self.compiled():
            matcher = grammar.matcher()
            ones = np.full(VOCABULARY.mask_words, 0xFFFFFFFF, np.uint32)
            zeros = np.zeros(VOCABULARY.mask_words, np.uint32)
            matcher.fill_mask(ones)
            matcher.fill_mask(zeros)
            assert (ones == zeros).all(), f"{sample.source}: the mask depends on what was in the buffer"
            tail = len(VOCABULARY.tokens) % 32
            assert not tail or int(ones[-1]) >> tail == 0, f"{sample.source}: bits past the vocabulary are set"

    def test_a_refused_token_changes_nothing(self) -> None:
        for sample, grammar in self.compiled():
            matcher = grammar.matcher()
            before = mask_of(matcher)
            for token in np.flatnonzero(~before)[:50]:
                assert not matcher.accept(int(token))
            assert (mask_of(matcher) == before).all(), f"{sample.source}"

    def test_rolling_back_any_number(self) -> None:
        for sample, grammar in self.compiled():
            for text in sample.accepts:
                tokens = [*tokenize(text, 2), EOS]
                matcher = grammar.matcher()
                masks = []
                for token in tokens:
                    masks.append(mask_of(matcher))
                    assert matcher.accept(token)
                assert ended(matcher), f"{sample.source}: accepted the end and is not terminated"
                for back in range(1, len(tokens) + 1):
                    matcher.rollback(back)
                    assert not ended(matcher)
                    assert (mask_of(matcher) == masks[len(tokens) - back]).all(), f"{sample.source}: {back} back"
                    for token in tokens[len(tokens) - back :]:
                        assert matcher.accept(token), f"{sample.source}: again, after rolling back {back}"

    def test_matchers_are_independent(self) -> None:
        for sample, grammar in self.compiled():
            first, second = grammar.matcher(), grammar.matcher()
            fresh = mask_of(second)
            for token in tokenize(sample.accepts[0], 0):
                assert first.accept(token)
            assert (mask_of(second) == fresh).all(), f"{sample.source}"

    def test_masks_at_once_are_masks_one_by_one(self) -> None:
        """Texts in different states, one of them at its end, of different grammars."""
        backend = self.backend()
        matchers: list[GrammarMatcher] = []
        for sample in self.all_samples():
            grammar = backend.compile(sample.source)
            tokens = [*tokenize(sample.accepts[-1], 1), EOS]
            for length in {0, len(tokens) // 2, len(tokens)}:
                matchers.append(grammar.matcher())
                assert all(matchers[-1].accept(token) for token in tokens[:length])
        for chosen in (matchers, matchers[:1], matchers[:2], []):
            masks = np.full((len(chosen), VOCABULARY.mask_words), 0xFFFFFFFF, np.uint32)
            backend.fill_masks(chosen, masks)
            for row, matcher in zip(masks, chosen, strict=True):
                assert (bits_of(row) == mask_of(matcher)).all()
        # A view into a larger buffer, as the engine's may be.
        buffer = np.full((len(matchers) + 2, VOCABULARY.mask_words), 0xFFFFFFFF, np.uint32)
        backend.fill_masks(matchers, buffer[1:-1])
        assert (buffer[[0, -1]] == 0xFFFFFFFF).all(), "rows of others were written"
        assert all((bits_of(row) == mask_of(m)).all() for row, m in zip(buffer[1:-1], matchers, strict=True))

    def test_every_end_token_ends(self) -> None:
        """Several tokens may end a text, and none of them is text, even if the tokenizer gives them some."""
        words = VOCABULARY.tokens
        several = Vocabulary((*words, b"yes", b"", b""), (EOS, len(words), len(words) + 1))  # and one without text
        backend = self.backend(several)
        for sample in self.all_samples():
            grammar = backend.compile(sample.source)
            tokens = tokenize(sample.accepts[0], 1)
            for end in several.eos_token_ids:
                matcher = grammar.matcher()
                for token in tokens:
                    may_end = matcher.accept(end)
                    if may_end:
                        assert ended(matcher)
                        matcher.rollback(1)
                    assert may_end == bits_of_all(matcher, several)[end]
                    assert matcher.accept(token), f"{sample.source}"
                allowed = bits_of_all(matcher, several)
                assert allowed[list(several.eos_token_ids)].all(), f"{sample.source}: not every end is allowed"
                assert not allowed[len(words) + 2], "a token without text is allowed"
                assert not matcher.accept(len(words) + 2), "a token without text is taken"
                assert matcher.accept(end)
                assert ended(matcher), f"{sample.source}: {end} does not end it"

    def test_compiling_in_several_threads(self) -> None:
        """As core does it; what comes out is what one thread gets."""
        backend = self.backend()
        samples = list(self.all_samples()) * 3
        with ThreadPoolExecutor(4) as pool:
            grammars = list(pool.map(lambda sample: backend.compile(sample.source), samples))
            matchers = list(pool.map(lambda grammar: grammar.matcher(), grammars))
        for sample, grammar, matcher in zip(samples, grammars, matchers, strict=True):
            assert takes(matcher, [*tokenize(sample.accepts[0], 1), EOS]), f"{sample.source}, compiled by a thread"
            assert not any(takes(grammar.matcher(), [*tokenize(text, 1), EOS]) for text in sample.rejects)

    def test_forced_text_is_forced(self) -> None:
        for sample, grammar in self.compiled():
            for text in sample.accepts:
                matcher = grammar.matcher()
                done = b""
                for token in tokenize(text, 3):
                    forced = matcher.forced_text()
                    rest = text.encode()[len(done) :]
                    assert rest.startswith(forced) or forced.startswith(rest), f"{sample.source} after {done!r}"
                    assert matcher.accept(token)
                    done += VOCABULARY.tokens[token]

    def test_what_cannot_be_compiled_is_a_request_error(self) -> None:
        backend = self.backend()
        broken = [*BROKEN, *(GrammarSource("structural_tag", json.dumps(tree)) for tree in BROKEN_STRUCTURES)]
        for source in [*self.unsupported, *(s for s in broken if s.kind in self.plugin().kinds)]:
            with pytest.raises(RequestError) as caught:
                backend.compile(source)
            assert caught.value.status == 400


BROKEN = (
    GrammarSource("json_schema", "{"),
    GrammarSource("regex", "(unclosed"),
    GrammarSource("choice", "not json"),
    GrammarSource("choice", "[]"),
    GrammarSource("ebnf", "root ::= missing_rule"),
    GrammarSource("structural_tag", "[1, 2"),
)


def tokenize(text: str, seed: int) -> list[int]:
    """One of the ways to write `text` in VOCABULARY. Seed 0: single bytes; others mix in longer tokens."""
    draw = random.Random(seed)
    raw, tokens = text.encode(), []
    while raw:
        longer = [i for i, t in enumerate(VOCABULARY.tokens) if len(t) > 1 and raw.startswith(t)] if seed else []
        token = draw.choice(longer) if longer and draw.random() < 0.7 else raw[0]
        tokens.append(token)
        raw = raw[len(VOCABULARY.tokens[token]) :]
    return tokens


def takes(matcher: GrammarMatcher, tokens: Sequence[int]) -> bool:
    """Whether every token is accepted, the end included."""
    return all(matcher.accept(token) for token in tokens) and matcher.terminated


def mask_of(matcher: GrammarMatcher) -> np.ndarray:
    """Allowed tokens, bool [vocabulary]."""
    return bits_of_all(matcher, VOCABULARY)


def bits_of_all(matcher: GrammarMatcher, vocabulary: Vocabulary) -> np.ndarray:
    """Allowed tokens of any vocabulary, bool [vocabulary]."""
    words = np.zeros(vocabulary.mask_words, np.uint32)
    matcher.fill_mask(words)
    return bits_of(words, len(vocabulary.tokens))


def bits_of(words: np.ndarray, num_tokens: int = len(VOCABULARY.tokens)) -> np.ndarray:
    """A row of masks as bool [num_tokens]."""
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:num_tokens].astype(bool)


def ended(matcher: GrammarMatcher) -> bool:
    """`terminated`, asked anew each time."""
    return matcher.terminated
