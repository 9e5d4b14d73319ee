"""Core's prefix caches through their suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from core.testing.contracts.prefix_cache import PrefixCacheContract


class TestRadix(PrefixCacheContract):
    name = "radix"
    settings: ClassVar[Mapping[str, Any]] = {"events": True}


class TestRadixWithoutEvents(PrefixCacheContract):
    name = "radix"


class TestNone(PrefixCacheContract):
    name = "none"


def test_broken_caches_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("prefix_cache")
