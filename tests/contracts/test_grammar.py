"""The suite of grammar backends: a backend of choices passes, broken ones do not."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from core.interfaces.context import PluginContext
from core.interfaces.errors import RequestError
from core.interfaces.grammar import (
    CompiledGrammar,
    GrammarBackend,
    GrammarMatcher,
    GrammarSource,
    TokenMask,
    Vocabulary,
)
from core.testing.contracts.grammar import GrammarContract, GrammarSample

from .running import failures


class Choices(GrammarBackend):
    """One of several texts. `fault`: how it is broken."""

    kinds = frozenset({"choice"})
    fault: ClassVar[str] = ""

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        try:
            texts = json.loads(source.text)
        except json.JSONDecodeError as error:
            if self.fault == "lets errors through":
                raise
            raise RequestError(f"choice is no JSON: {error}") from error
        if not isinstance(texts, list) or not texts:
            raise RequestError("choice must be a list of texts")
        return Compiled([text.encode() for text in texts], self.vocabulary, self.fault)


class Compiled(CompiledGrammar):
    def __init__(self, texts: list[bytes], vocabulary: Vocabulary, fault: str) -> None:
        self.texts, self.vocabulary, self.fault = texts, vocabulary, fault
        self.shared = Matcher(self)

    def matcher(self) -> GrammarMatcher:
        return self.shared if self.fault == "shares its state" else Matcher(self)


class Matcher(GrammarMatcher):
    def __init__(self, grammar: Compiled) -> None:
        self.grammar = grammar
        self.history: list[int] = []

    @property
    def done(self) -> bytes:
        tokens = self.grammar.vocabulary.tokens
        return b"".join(tokens[token] for token in self.history)

    def allowed(self, token: int) -> bool:
        if self.terminated:
            return False
        eos = token in self.grammar.vocabulary.eos_token_ids
        if eos:
            return self.grammar.fault == "ends anywhere" or self.done in self.grammar.texts
        piece = self.grammar.vocabulary.tokens[token]
        return bool(piece) and any(text.startswith(self.done + piece) for text in self.grammar.texts)

    def fill_mask(self, mask: TokenMask) -> None:
        if self.grammar.fault != "leaves old bits":
            mask[:] = 0
        for token in range(len(self.grammar.vocabulary.tokens)):
            narrow = self.grammar.fault == "masks long tokens" and len(self.grammar.vocabulary.tokens[token]) > 1
            if self.allowed(token) and not narrow:
                mask[token // 32] |= 1 << (token % 32)

    def accept(self, token_id: int) -> bool:
        fine = self.allowed(token_id)
        if fine or self.grammar.fault == "remembers refused tokens":
            self.history.append(token_id)
        return fine

    def rollback(self, num_tokens: int) -> None:
        wrong = self.grammar.fault == "rolls back one" and num_tokens > 1
        del self.history[len(self.history) - (1 if wrong else num_tokens) :]

    @property
    def terminated(self) -> bool:
        return bool(self.history) and self.history[-1] in self.grammar.vocabulary.eos_token_ids

    def forced_text(self) -> bytes:
        rest = [text[len(self.done) :] for text in self.grammar.texts if text.startswith(self.done)]
        if self.grammar.fault == "forces the first choice":
            return rest[0] if rest else b""
        return rest[0] if len(rest) == 1 else b""


class TestChoices(GrammarContract):
    implementation = Choices
    samples = (
        GrammarSample(
            GrammarSource("choice", '["yes", "yesterday", "no", "中文", "a b\\n"]'),
            accepts=("yes", "yesterday", "no", "中文", "a b\n"),
            rejects=("", "ye", "yess", "maybe", "中"),
        ),
    )


FAULTS = ("lets errors through", "shares its state", "ends anywhere", "leaves old bits", "masks long tokens",
          "remembers refused tokens", "rolls back one", "forces the first choice")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_backends_fail(fault: str) -> None:
    broken = type("Broken", (Choices,), {"fault": fault})
    assert failures(type("Suite", (TestChoices,), {"implementation": broken}))


def test_the_context_reaches_the_backend() -> None:
    ctx = PluginContext()
    assert Choices(Vocabulary((b"a",), ()), ctx).ctx is ctx
