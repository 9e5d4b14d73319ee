"""A pytest plugin: of a broken implementation only the tests that must notice, and no search for small examples."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=[Phase.generate])


def pytest_configure() -> None:
    settings.load_profile("mutants")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if _name(item) in item.cls.caught_by]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _name(item: pytest.Item) -> str:
    return str(getattr(item, "originalname", item.name))
