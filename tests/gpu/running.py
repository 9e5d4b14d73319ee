"""One part of `python -m tests.gpu` in a process of its own, and what came of it."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu import order, sanitizer
from tests.gpu.parts import Part
from tests.gpu.reporting import FILE, LINES

# The project's options are those of its environment: here there may be other versions, which warn of other things,
# and plugins of pytest that mind being run by several workers.
PYTEST = (
    "-m", "pytest", "-q", "--tb=short", "-rP", "-p", "no:cacheprovider", "-p", "no:benchmark", "-o", "addopts=",
    "-o", "filterwarnings=ignore", "-o", "faulthandler_timeout=90", "-p", "tests.gpu.reporting",
    "-p", "tests.gpu.order",
)  # fmt: skip
NICENESS = 5  # of parts that others go before
_GRACE_S = 3.0  # between asking a process to end and ending it
_MOST_NAMES = 4  # tests that a reason names


@dataclass
class Outcome:
    """result: "ok", "FAILED", "STOPPED" (took too long), "NOT RUN" or "skipped" (nothing of it can run here).
    failures: (test, reason). skips: reason -> tests. lines: figures that tests told."""

    part: Part
    result: str
    passed: int = 0
    seconds: float = 0.0
    reason: str = ""
    failures: list[tuple[str, str]] = field(default_factory=list)
    skips: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def row(self) -> str:
        skipped = sum(self.skips.values())
        return (
            f"{self.part.name:20} {self.result:8} {self.passed:6} {len(self.failures):6} {skipped:7} "
            f"{self.seconds:6.1f}  {self.part.proves}"
        )

    def line(self) -> str:
        return f"== {self.row()}"


class Running:
    """Begins at once; ended when it ends, or after `limit_s`."""

    def __init__(self, part: Part, folder: Path, workers: int, limit_s: float) -> None:
        self.part, self.workers = part, workers
        self._limit_s = limit_s
        self._tool = part.environment.get(sanitizer.VARIABLE)
        self.log = folder / f"{part.name}.log"
        self._report = folder / f"{part.name}.jsonl"
        self._lines = folder / f"{part.name}.lines"
        for path in (self._report, self._lines):
            path.unlink(missing_ok=True)
        self._stopped = False
        self._outcome: Outcome | None = None
        self._begin = time.monotonic()
        self._file = self.log.open("wb")
        command = self.command()
        self._file.write((" ".join(command) + "\n").encode())
        self._file.flush()
        self._process = subprocess.Popen(
            command, stdout=self._file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env=self.environment(),
        )  # fmt: skip
        if not (part.jobs or part.alone):
            with contextlib.suppress(OSError):  # it has ended already
                os.setpriority(os.PRIO_PGRP, self._process.pid, NICENESS)

    @property
    def cores(self) -> int:
        """That it keeps busy."""
        return self.workers + self.part.jobs

    def command(self) -> list[str]:
        words = [sys.executable, *PYTEST, *self.part.arguments]
        if self.workers > 1 and importlib.util.find_spec("xdist") is not None:
            words += ["-n", str(self.workers)]
            if importlib.util.find_spec("xdist.scheduler.worksteal") is not None:
                words += ["--dist", "worksteal"]
        return [*sanitizer.command(self._tool), *words] if self._tool else words

    def environment(self) -> dict[str, str]:
        files = {FILE: str(self._report.resolve()), LINES: str(self._lines.resolve())}
        first = {order.VARIABLE: order.SEPARATOR.join(self.part.first)}
        # A worker of pytest-xdist may be who runs this; its part of the tests is not ours.
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        made = {**outer, **self.part.environment, **files, **first, "PYTHONUNBUFFERED": "1"}
        made.setdefault("OMP_NUM_THREADS", "2")
        made.setdefault("HF_HUB_OFFLINE", "1")
        return made | sanitizer.environment(self._tool) if self._tool else made

    def ended(self) -> bool:
        if self._outcome is not None:
            return True
        took = time.monotonic() - self._begin
        if self._process.poll() is None:
            if took < self._limit_s:
                return False
            self._stop()
        self._file.close()
        self._outcome = self._read(took)
        return True

    def outcome(self) -> Outcome:
        assert self._outcome is not None, "it has not ended"
        return self._outcome

    def _stop(self) -> None:
        """With all that it started, also in process groups of their own: they are in the session that it leads."""
        self._stopped = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in {self._process.pid, *_in_session(self._process.pid)}:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)

    def _read(self, took: float) -> Outcome:
        entries: list[dict[str, Any]] = []
        if self._report.exists():
            # The last line may have been cut off.
            lines = self._report.read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines if line.endswith("}")]
        made = Outcome(self.part, "ok", seconds=took)
        made.passed = sum(entry.get("outcome") == "passed" for entry in entries)
        made.failures = [(entry["test"], entry["reason"]) for entry in entries if entry.get("outcome") == "failed"]
        skips = collections.Counter(entry["reason"] for entry in entries if entry.get("outcome") == "skipped")
        made.skips = dict(skips)
        if self._lines.exists():
            made.lines = self._lines.read_text(encoding="utf-8").splitlines()
        code = self._process.returncode
        begun = list(dict.fromkeys(entry["test"] for entry in entries if entry.get("outcome") == "begun"))
        over = {entry["test"] for entry in entries if entry.get("outcome") == "ended"}
        running = [test for test in begun if test not in over]
        collected = max((entry["collected"] for entry in entries if "collected" in entry), default=0)
        log = self.log.read_text(encoding="utf-8", errors="replace")
        if self._stopped:
            made.result = "STOPPED"
            made.reason = f"after {took:.0f} s, {len(over)} of {collected} tests over; {_names(running)}"
        elif made.failures or code not in (0, 5):
            made.result = "FAILED"
            if running:
                made.reason = f"the process ended itself ({_status(code)}): the last test begun was {running[-1]}"
            elif not made.failures:
                made.reason = f"{_status(code)}; {_last_words(log)}"
        elif not made.passed:
            made.result = "skipped"
            made.reason = "" if made.skips else "no test was collected"
        if self._tool:
            self._add_findings(made, log)
        return made

    def _add_findings(self, made: Outcome, log: str) -> None:
        told, alike = sanitizer.findings(log)
        found = " | ".join(told)
        if alike:
            made.lines.append(
                f"{self._tool}: {alike} races of one instruction with itself, as Triton's reductions have them"
            )
            if not found and not made.failures and self._process.returncode == sanitizer.FOUND and not self._stopped:
                made.result, made.reason = "ok", ""
        if found and made.result in ("FAILED", "STOPPED"):
            made.reason = f"{self._tool}: {found}" + (f"; {made.reason}" if made.reason else "")
        elif found and ("Internal Sanitizer Error" in found or "Error:" in found):
            made.result, made.reason = "FAILED", f"{self._tool} could not check all: {found}"
        elif found:
            made.lines.append(f"{self._tool}, no error: {found}")
        if made.result == "ok" and not sanitizer.has_ended(log):
            made.result, made.reason = "FAILED", f"{self._tool} said nothing of what it found; {_last_words(log)}"


def _status(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {-code}, {signal.Signals(-code).name}"


def _names(running: list[str]) -> str:
    """running: tests, the last begun last."""
    if not running:
        return "between tests, or before the first"
    names = ", ".join(running[-_MOST_NAMES:])
    more = len(running) - _MOST_NAMES
    return f"running: {names}" + (f" and {more} more" if more > 0 else "")


def _last_words(log: str) -> str:
    return " | ".join(log.strip().splitlines()[-3:])[-400:]


def _in_session(leader: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # Behind the name, which is in brackets: state, parent, group, session.
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                yield int(path.parent.name)
