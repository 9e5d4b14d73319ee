"""plugin-xgrammar goes through the suite of grammar backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from core.testing.contracts.grammar import GrammarContract

from .grammar_samples import COMPACT_SAMPLES, SAMPLES, UNSUPPORTED


class TestXgrammar(GrammarContract):
    name = "xgrammar"
    samples = SAMPLES
    unsupported = UNSUPPORTED


class TestXgrammarCompact(TestXgrammar):
    """Without whitespace in JSON, and masks filled by one thread."""

    settings: ClassVar[Mapping[str, Any]] = {"whitespace": "compact", "threads": 1}
    samples = COMPACT_SAMPLES
