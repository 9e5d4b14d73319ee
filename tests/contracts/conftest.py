"""Broken implementations through their suites: `assert_caught(module)`."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_MUTANTS = Path(__file__).parent / "mutants"
_ROOT = Path(__file__).parents[2]


@pytest.fixture
def assert_caught(tmp_path: Path) -> Callable[[str], None]:
    """Run the test classes of tests/contracts/mutants/NAME.py and see that each fails the tests it names."""

    def check(name: str) -> None:
        report = tmp_path / "report.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "tests.contracts.mutants.selection", "--tb=line",
            f"--contract-report={report}", str(_MUTANTS / f"{name}.py"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=_ROOT)
        assert report.exists(), done.stdout[-4000:] + done.stderr[-2000:]
        failed = {
            where.rpartition("::")[2]: {test.partition("[")[0] for test in entry["failed"]}
            for where, entry in json.loads(report.read_text()).items()
        }
        module = importlib.import_module(f"tests.contracts.mutants.{name}")
        mutants = {
            title: set(cls.caught_by)
            for title, cls in inspect.getmembers(module, inspect.isclass)
            if title.startswith("Test") and cls.__module__ == module.__name__
        }
        assert mutants
        missed = {title: sorted(tests - failed.get(title, set())) for title, tests in mutants.items()}
        missed = {title: tests for title, tests in missed.items() if tests}
        assert not missed, f"{missed} did not notice\n{done.stdout[-6000:]}"

    return check
