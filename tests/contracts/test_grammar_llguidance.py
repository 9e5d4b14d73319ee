"""plugin-llguidance goes through the suite of grammar backends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from core.interfaces.errors import RequestError
from core.interfaces.grammar import GrammarSource
from core.testing.contracts.grammar import GrammarContract, tokenize

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
            assert all(matcher.accept(token) for token in tokenize("a" * 200, seed=0))
            assert not matcher.accept(ord("b"))

    def test_an_object_of_too_many_optional_properties_is_refused_at_once(self) -> None:
        properties = {f"name_{number}": {"type": "integer"} for number in range(1500)}
        with pytest.raises(RequestError, match="items"):
            self.backend().compile(
                GrammarSource("json_schema", json.dumps({"type": "object", "properties": properties}))
            )


class TestLlguidanceCompact(TestLlguidance):
    """Without whitespace in JSON, and masks filled by one thread."""

    settings: ClassVar[Mapping[str, Any]] = {"whitespace": "compact", "threads": 1}
    samples = COMPACT_SAMPLES
