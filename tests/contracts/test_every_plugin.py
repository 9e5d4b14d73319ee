"""Every plugin of this repository goes through the suite of its kind."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from core.registry.catalog import Catalog
from core.registry.records import canonical
from core.testing.contracts.base import Contract

ROOT = Path(__file__).resolve().parents[2]
# Suites that run in processes of their own, and those of commands, which a plugin's tests have beside them.
ELSEWHERE = ("tests/plugins/*/interpreted/test_*.py", "tests/plugins/*/test_*_command.py")


def suites(cls: type[Contract] = Contract) -> Iterator[type[Contract]]:
    for child in cls.__subclasses__():
        yield child
        yield from suites(child)


def imported(path: Path) -> None:
    """Run a test module under a name of its own, for the classes that it defines. It may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"suites_of_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))


def test_every_plugin_has_a_suite() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"{__package__}.{path.stem}")
    for pattern in ELSEWHERE:
        for path in ROOT.glob(pattern):
            imported(path)
    tested = {(suite.kind, suite.name.rpartition(":")[2]) for suite in suites() if suite.__name__.startswith("Test")}
    projects = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]
    ours = {canonical(tomllib.loads(path.read_text())["project"]["name"]) for path in projects}
    plugins = [record for record in Catalog.scan().records if canonical(record.distribution) in ours]
    assert len(plugins) > 20
    untested = sorted(record.title for record in plugins if (record.kind, record.name) not in tested)
    assert not untested
