"""The suite of grammar backends: a backend of choices passes, broken ones do not."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, ClassVar

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
from core.registry.catalog import Catalog
from core.testing.contracts.grammar import GrammarContract, GrammarSample

from .running import failures


class Choices(GrammarBackend):
    """One of several texts. `fault`: how it is broken."""

    kinds = frozenset({"choice"})
    fault: ClassVar[str] = ""

    texts: list[Any]

    def fill_masks(self, matchers: Sequence[GrammarMatcher], masks: TokenMask) -> None:
        if self.fault == "one mask for all":
            for mask in masks:
                matchers[0].fill_mask(mask)
        elif self.fault == "writes beside its rows":
            super().fill_masks(matchers, masks)
            whole = masks if masks.base is None else masks.base
            if whole.shape[:1] > masks.shape[:1]:
                whole[-1] = 0
        else:
            super().fill_masks(matchers, masks)

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        if self.fault == "compiles one at a time":
            self.texts = json.loads(source.text) if source.text.startswith("[") else []
            time.sleep(0.01)
            source = GrammarSource(source.kind, json.dumps(self.texts))
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
        return b"".join(tokens[token] for token in self.history if token < len(tokens))

    def allowed(self, token: int) -> bool:
        if self.terminated:
            return self.grammar.fault == "goes on after the end" and token == 0
        if not 0 <= token < len(self.grammar.vocabulary.tokens):
            return self.grammar.fault == "takes any id" and token >= 0
        if self.grammar.fault == "first end only" and token in self.grammar.vocabulary.eos_token_ids[1:]:
            return False
        if self.grammar.fault == "ends are text" and self.grammar.vocabulary.tokens[token]:
            piece = self.grammar.vocabulary.tokens[token]
            return any(text.startswith(self.done + piece) for text in self.grammar.texts)
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
        GrammarSample(GrammarSource("choice", '["12", "null"]'), accepts=("12", "null"), rejects=("", "1", "yes")),
    )


FAULTS = ("lets errors through", "shares its state", "ends anywhere", "leaves old bits", "masks long tokens",
          "remembers refused tokens", "rolls back one", "forces the first choice", "one mask for all",
          "writes beside its rows", "compiles one at a time", "goes on after the end", "takes any id",
          "first end only", "ends are text")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_backends_fail(fault: str) -> None:
    broken = type("Broken", (Choices,), {"fault": fault})
    assert failures(type("Suite", (TestChoices,), {"implementation": broken}))


def distorted(tree: Any, fault: str) -> Any:
    """A structure as a backend would read it that gets one thing wrong."""
    if isinstance(tree, list):
        return [distorted(item, fault) for item in tree]
    if not isinstance(tree, dict):
        return tree
    made = {key: distorted(item, fault) for key, item in tree.items()}
    match (fault, made.get("type")):
        case ("no at_least_one" | "no stop_after_first", _):
            made.pop(fault.removeprefix("no "), None)
        case ("text of letters", "any_text"):
            return {"type": "regex", "pattern": "[a-z<= .]*"}
        case ("no separator", "tags_with_separator"):
            made["separator"] = ""
        case ("first of or", "or"):
            return made["elements"][0]
        case ("no end", "tag"):
            made["end"] = made["end"][:-1]
        case ("any JSON", "json_schema"):
            made["json_schema"] = True
    return made


STRUCTURE_FAULTS = ("no at_least_one", "no stop_after_first", "text of letters", "no separator", "first of or",
                    "no end", "any JSON", "lets anything pass")  # fmt: skip


@pytest.mark.parametrize("fault", ["", *STRUCTURE_FAULTS])
def test_structures_read_wrongly_fail(fault: str) -> None:
    library = Catalog.scan().load("grammar", "llguidance")

    class Distorted(library):  # type: ignore[misc, valid-type]
        kinds = frozenset({"structural_tag"})

        def compile(self, source: GrammarSource) -> CompiledGrammar:
            try:
                tree = distorted(json.loads(source.text), fault)
            except json.JSONDecodeError:
                tree = {}
            if fault == "lets anything pass":
                tree = tree if isinstance(tree, dict) and tree.get("type") == "any_text" else {"type": "any_text"}
            return super().compile(GrammarSource("structural_tag", json.dumps(tree)))

    suite = type("Suite", (GrammarContract,), {"implementation": Distorted})()
    if not fault:
        suite.test_texts_however_they_are_cut()
        return
    with pytest.raises(AssertionError, match="took"):
        suite.test_texts_however_they_are_cut()


def test_the_context_reaches_the_backend() -> None:
    ctx = PluginContext()
    assert Choices(Vocabulary((b"a",), ()), ctx).ctx is ctx
