"""What the audit of dependencies says of pip-audit's answers; the service itself is asked by hand."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit-dependencies"


@pytest.fixture(scope="module")
def audit() -> Any:
    loader = importlib.machinery.SourceFileLoader("audit_dependencies", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


WELL = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("answers", "code"),
    [([WELL], 0), ([WELL, BAD], 1), ([WELL, SKIPPED], 3), ([SKIPPED], 3), ([SKIPPED, BAD], 1), ([], 3)],
)
def test_what_was_not_checked_is_not_called_well(
    audit: Any, answers: list[dict[str, Any]], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.told(answers) == code
    shown = capsys.readouterr().out
    assert ("NOT CHECKED" in shown) == (SKIPPED in answers)
    assert ("CVE-1" in shown) == (BAD in answers)


def test_without_the_tool_nothing_was_checked(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit.shutil, "which", lambda name: None)
    assert audit.vulnerabilities("core") == 3
    assert "NOT CHECKED" in capsys.readouterr().out
