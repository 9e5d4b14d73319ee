"""A grammar backend small enough to check by eye, and an executor that samples within masks.

Token t of the fake vocabulary is the character chr(32 + t); EOS ends a text. What a source says when it is compiled is
in `Fault`.
"""

from __future__ import annotations

import json
import threading
import time

import numpy as np
from engine_fakes import EOS, FakeExecutor, FakeHandle, FakeScheduler, hello

from core.engine.engine import Engine
from core.engine.grammars import Backends, GrammarLimits, GrammarPool
from core.engine.vocabulary import Vocabularies
from core.interfaces.context import PluginContext
from core.interfaces.errors import RequestError
from core.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarMatcher, Vocabulary
from core.interfaces.params import GrammarParams
from core.interfaces.step import StepResult

VOCAB = 97
PIECES = tuple(b"" if token == EOS else bytes([32 + token]) for token in range(VOCAB))


def ids_of(text: str) -> list[int]:
    return [ord(character) - 32 for character in text]


def text_of(tokens: list[int]) -> str:
    return "".join(chr(32 + token) for token in tokens if token != EOS)


class Panic(BaseException):
    """As native libraries raise."""


class ChoiceBackend(GrammarBackend):
    """Texts of a list. Kind "regex": {"choices": [...], and what goes wrong}."""

    kinds = frozenset({"choice", "regex", "structural_tag", "json_schema"})

    def __init__(self, vocabulary: Vocabulary, ctx: PluginContext, gate: threading.Event | None = None) -> None:
        super().__init__(vocabulary, ctx)
        self.gate = gate or threading.Event()
        self.compiled: list[str] = []

    def compile(self, source) -> CompiledGrammar:
        self.compiled.append(source.text)
        if source.kind == "json_schema" and "wrong" in source.text:
            raise RequestError("$.wrong is not supported")
        if source.kind == "structural_tag" and "wrong" in source.text:
            raise RequestError("somewhere something is not supported")
        if source.kind in ("structural_tag", "json_schema"):
            return Compiled(self, {"choices": ["ab"]})
        made = json.loads(source.text)
        given = made if isinstance(made, dict) else {"choices": made}
        if given.get("waits"):
            self.gate.wait(20)
        if given.get("panics"):
            raise Panic("native")
        if given.get("breaks"):
            raise KeyError("native")
        if not given["choices"]:
            raise RequestError("choice must be a list of texts")
        return Compiled(self, given)


class Compiled(CompiledGrammar):
    num_bytes = 5000

    def __init__(self, backend: ChoiceBackend, given: dict) -> None:
        self.backend, self.given = backend, given

    def matcher(self) -> GrammarMatcher:
        return Matcher(self.backend, self.given)


class Matcher(GrammarMatcher):
    def __init__(self, backend: ChoiceBackend, given: dict) -> None:
        self.backend, self.given, self.tokens = backend, given, []
        self.texts = [text.encode() for text in given["choices"]]

    def allowed(self, token: int) -> bool:
        if self.terminated:
            return False
        pieces = self.backend.vocabulary.tokens
        done = b"".join(pieces[t] for t in self.tokens)
        if token in self.backend.vocabulary.eos_token_ids:
            return done in self.texts
        return bool(pieces[token]) and any(text.startswith(done + pieces[token]) for text in self.texts)

    def fill_mask(self, mask) -> None:
        if len(self.tokens) == self.given.get("mask_panics"):
            raise Panic("native")
        mask[:] = 0
        for token in range(len(self.backend.vocabulary.tokens)):
            if self.allowed(token):
                mask[token // 32] |= np.uint32(1 << (token % 32))

    def accept(self, token_id: int) -> bool:
        if len(self.tokens) == self.given.get("refuses"):
            return False
        fine = self.allowed(token_id)
        if fine:
            self.tokens.append(token_id)
        return fine

    def rollback(self, num_tokens: int) -> None:
        del self.tokens[len(self.tokens) - num_tokens :]

    @property
    def terminated(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.backend.vocabulary.eos_token_ids


class MaskedHandle(FakeHandle):
    """Holds a step until `sample`."""

    def __init__(self, executor, plan, inner: FakeHandle) -> None:
        super().__init__(inner.result, inner.error, inner.ready_s)
        self.executor, self.plan, self.sampled = executor, plan, False
        executor.log.append(("launch", plan.step))

    def sample(self, masks) -> None:
        assert self.plan.masked
        assert not self.sampled
        self.executor.log.append(("sample", self.plan.step))
        self.sampled, self.executor.unsampled = True, None
        for row, words in zip(masks.rows, masks.words, strict=True) if masks is not None else ():
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCAB])
            assert len(allowed), "a row without any token"
            result: StepResult = self.result
            result.tokens[row, 0] = allowed[result.tokens[row, 0] % len(allowed)]

    def wait(self) -> StepResult:
        assert self.sampled or not self.plan.masked, "waited for a masked step that was not sampled"
        self.executor.log.append(("wait", self.plan.step))
        return super().wait()


class MaskingExecutor(FakeExecutor):
    """Samples within masks, and insists on the order of calls."""

    def __init__(self, step_s: float = 0.0) -> None:
        super().__init__(step_s)
        self.unsampled: int | None = None
        self.log: list[tuple[str, int]] = []

    def launch(self, plan):
        assert self.unsampled is None, "launched before the masked step was sampled"
        handle = MaskedHandle(self, plan, super().launch(plan))
        self.unsampled = plan.step if plan.masked else None
        return handle


def grammar_pool(gate: threading.Event | None = None, clock=time.monotonic, pieces=PIECES, ends=(EOS,), **limits):
    """(pool, list of the backends made)."""
    made: list[ChoiceBackend] = []

    def make(vocabulary: Vocabulary) -> ChoiceBackend:
        made.append(ChoiceBackend(vocabulary, PluginContext(), gate))
        return made[-1]

    backends = Backends(lambda: Vocabularies.from_pieces(pieces, ends, frozenset(ends)), make)
    return GrammarPool(backends, ChoiceBackend.kinds, GrammarLimits(**limits), name="fake", clock=clock), made


def grammar_engine(overlap: bool = False, max_running: int = 8, pool: GrammarPool | None = None, **scheduler) -> Engine:
    return Engine(
        FakeScheduler(max_running, **scheduler),
        MaskingExecutor(),
        hello(max_running),
        lambda message: message,
        max_slots=max_running,
        overlap=overlap,
        grammars=pool or grammar_pool()[0],
    )


def choices(*texts: str, after: str | None = None, **faults) -> GrammarParams:
    if faults:
        return GrammarParams(kind="regex", text=json.dumps({"choices": texts, **faults}), after=after, param="regex")
    return GrammarParams(kind="choice", text=json.dumps(texts), after=after, param="guided_choice")
