"""plugin-llguidance goes through the suite of grammar backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from core.interfaces.grammar import GrammarSource
from core.testing.contracts.grammar import GrammarContract, takes, tokenize

from .grammar_samples import COMPACT_SAMPLES, SAMPLES, UNSUPPORTED


class TestLlguidance(GrammarContract):
    name = "llguidance"
    samples = SAMPLES
    unsupported = UNSUPPORTED

    def test_text_that_is_forced_is_not_written_out(self) -> None:
        """A million characters: the library would take seconds for them, with Python's lock in its hand, and give up
        at its own limits."""
        for pattern in ("((a{1000}){1000}){1000}", "(a{10000}){100}"):
            matcher = self.backend().compile(GrammarSource("regex", pattern)).matcher()
            assert takes(matcher, tokenize("a" * 200, seed=0))
            assert not takes(matcher, tokenize("b", seed=0))


class TestLlguidanceCompact(TestLlguidance):
    """Without whitespace in JSON, and masks filled by one thread."""

    settings: ClassVar[Mapping[str, Any]] = {"whitespace": "compact", "threads": 1}
    samples = COMPACT_SAMPLES
