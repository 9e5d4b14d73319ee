"""Run a suite by hand, to see that it catches what it should."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from core.testing.contracts.base import Contract


def failures(suite: type[Contract], fixtures: Mapping[str, Callable[[Contract], Any]] | None = None) -> set[str]:
    """Names of the suite's tests that fail. fixtures: makes the arguments that tests take, by name."""
    failed = set()
    for name in dir(suite):
        if not name.startswith("test_") or name == "test_plugin_is_found_and_loaded_as_core_does":
            continue
        instance = suite()
        test = getattr(instance, name)
        arguments = {key: (fixtures or {})[key](instance) for key in inspect.signature(test).parameters}
        try:
            test(**arguments)
        except pytest.skip.Exception:
            continue
        except BaseException:  # a broken implementation may raise anything
            failed.add(name)
    return failed
