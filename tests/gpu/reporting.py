"""A pytest plugin: a line of JSON for each test as it ends, so that what ran before a part was stopped is known.

`-p tests.gpu.reporting`, with the file's name in CORE_GPU_TESTS_REPORT.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

FILE = "CORE_GPU_TESTS_REPORT"
LINES = "CORE_GPU_TESTS_LINES"  # a file for the figures that tests tell
LONGEST = 400  # characters of a reason


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get(FILE)
    if path and not hasattr(config, "workerinput"):  # with several workers the main process hears of all
        config.pluginmanager.register(_Writer(path), "core-gpu-report")


class _Writer:
    def __init__(self, path: str) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(report.nodeid, report.outcome, report.duration, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid or "collecting", "failed", 0.0, report)

    def _write(self, test: str, outcome: str, seconds: float, report: Any) -> None:
        entry = {"test": test, "outcome": outcome, "seconds": round(seconds, 2), "reason": _reason(report)}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _reason(report: Any) -> str:
    """Why it was skipped or failed; "" if it passed."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")[:LONGEST]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr))[:LONGEST]
