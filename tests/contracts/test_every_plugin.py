"""Every plugin of this repository goes through the suite of its kind."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

from core.registry.catalog import Catalog
from core.registry.records import canonical
from core.testing.contracts.base import Contract

ROOT = Path(__file__).resolve().parents[2]


def suites(cls: type[Contract] = Contract) -> Iterator[type[Contract]]:
    for child in cls.__subclasses__():
        yield child
        yield from suites(child)


def test_every_plugin_has_a_suite() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"{__package__}.{path.stem}")
    tested = {(suite.kind, suite.name.rpartition(":")[2]) for suite in suites() if suite.__name__.startswith("Test")}
    projects = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]
    ours = {canonical(tomllib.loads(path.read_text())["project"]["name"]) for path in projects}
    plugins = [record for record in Catalog.scan().records if canonical(record.distribution) in ours]
    assert len(plugins) > 20
    untested = sorted(record.title for record in plugins if (record.kind, record.name) not in tested)
    assert not untested
