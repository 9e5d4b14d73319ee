"""The pytest plugin that comes with core: options of the contract suites, and at the end of a run what they skipped.

Loaded by pytest wherever core is installed, so it imports nothing but pytest itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

# Suites are asserted with plain `assert`, whose values pytest shows only in modules that it may rewrite.
pytest.register_assert_rewrite("core.testing.contracts")

_PROPERTY = "core_contract"
_NOT_CLAIMED = "not claimed: "  # as in core.testing.contracts.base, which is not imported here

_MOST_NAMES = 3  # tests shown for one capability; the report file has all

# Contract class ("tests/test_mine.py::TestMine") -> {"plugin": "attention:mine", "passed": n, "failed": [tests],
# "skipped": {test: reason}, "not_claimed": {capability: [tests]}}, filled while tests run.
CONTRACTS: pytest.StashKey[dict[str, dict[str, Any]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("core", "contract suites of core")
    group.addoption("--contract-device", metavar="NAME", help="hardware plugin to test on (default: the best usable)")
    group.addoption(
        "--contract-examples", metavar="N", type=float, default=1.0, help="N times as many random examples (default: 1)"
    )
    group.addoption("--contract-report", metavar="FILE", help="write what was tested and skipped as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CONTRACTS] = {}
    config.pluginmanager.register(_Collector(config), "core-contract-report")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        cls: Any = getattr(item, "cls", None)
        if getattr(cls, "__core_contract__", False):
            cls._device_asked = config.getoption("contract_device")
            cls._example_factor = config.getoption("contract_examples")
            # Travels with the report, also between the processes of a distributed run.
            item.user_properties.append(
                (_PROPERTY, f"{cls.kind}:{cls.name or getattr(cls.implementation, '__name__', '')}")
            )


class _Collector:
    def __init__(self, config: pytest.Config) -> None:
        self._contracts = config.stash[CONTRACTS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plugin = next((value for key, value in report.user_properties if key == _PROPERTY), None)
        if plugin is None or (report.when != "call" and report.passed):
            return
        where, _, test = report.nodeid.partition("[")[0].rpartition("::")
        test += report.nodeid[len(where) + 2 + len(test) :]
        entry = self._contracts.setdefault(
            where, {"plugin": plugin, "passed": 0, "failed": [], "skipped": {}, "not_claimed": {}}
        )
        if report.skipped:
            reason = _reason(report)
            if reason.startswith(_NOT_CLAIMED):
                entry["not_claimed"].setdefault(reason.removeprefix(_NOT_CLAIMED), []).append(test)
            else:
                entry["skipped"][test] = reason
        elif report.passed:
            entry["passed"] += 1
        else:
            entry["failed"].append(test)


def _reason(report: pytest.TestReport) -> str:
    """Of a skip; an expected failure counts as one."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(getattr(report, "wasxfail", ""))
    return text.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    contracts = config.stash[CONTRACTS]
    lines = list(_lines(contracts))
    if lines:
        terminalreporter.section("contracts: what was not tested")
        for line in lines:
            terminalreporter.write_line(line)
    path = config.getoption("contract_report")
    if path and not hasattr(config, "workerinput"):
        Path(path).write_text(json.dumps(contracts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lines(contracts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for where in sorted(contracts):
        entry = contracts[where]
        if not (entry["not_claimed"] or entry["skipped"]):
            continue
        yield f"{where} ({entry['plugin']})"
        for capability, tests in sorted(entry["not_claimed"].items()):
            names = sorted({test.partition("[")[0] for test in tests})
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            yield f"  not claimed: {capability}: {', '.join(names[:_MOST_NAMES])}{more}"
        for test, reason in sorted(entry["skipped"].items()):
            yield f"  {test}: {reason}"
