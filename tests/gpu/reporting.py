"""A pytest plugin: a line of JSON for each test as it begins and as it ends, so that what ran before a part was stopped
or died is known, and what ran then.

`-p tests.gpu.reporting`, with the file's name in CORE_GPU_TESTS_REPORT.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
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

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:  # none in the main process of several workers
            self._write({"collected": len(session.items)})

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._write({"collected": len(ids)})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"test": nodeid, "outcome": "begun"})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"test": nodeid, "outcome": "ended"})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._test(report.nodeid, report.outcome, report.duration, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._test(report.nodeid or "collecting", "failed", 0.0, report)

    def _test(self, test: str, outcome: str, seconds: float, report: Any) -> None:
        self._write({"test": test, "outcome": outcome, "seconds": round(seconds, 2), "reason": _reason(report)})

    def _write(self, entry: dict[str, Any]) -> None:
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
