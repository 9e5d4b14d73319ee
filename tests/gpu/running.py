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
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu.parts import Part
from tests.gpu.reporting import FILE, LINES

# The project's options are those of its environment: here there may be other versions, which warn of other things,
# and plugins of pytest that mind being run by several workers.
PYTEST = (
    "-m", "pytest", "-q", "--tb=short", "-rP", "-p", "no:cacheprovider", "-p", "no:benchmark", "-o", "addopts=",
    "-o", "filterwarnings=ignore", "-o", "faulthandler_timeout=90", "-p", "tests.gpu.reporting",
)  # fmt: skip
SANITIZER_FAILED = 97
_GRACE_S = 3.0  # between asking a process to end and ending it


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

    def command(self) -> list[str]:
        words = [sys.executable, *PYTEST, *self.part.arguments]
        if self.workers > 1 and importlib.util.find_spec("xdist") is not None:
            words += ["-n", str(self.workers)]
        if tool := self.part.environment.get("SANITIZER"):
            prefix = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(SANITIZER_FAILED)]
            words = [*prefix, "--print-limit", "20", *words]
        return words

    def environment(self) -> dict[str, str]:
        files = {FILE: str(self._report.resolve()), LINES: str(self._lines.resolve())}
        made = {**os.environ, **self.part.environment, **files, "PYTHONUNBUFFERED": "1"}
        made.setdefault("OMP_NUM_THREADS", "2")
        made.setdefault("HF_HUB_OFFLINE", "1")
        if "SANITIZER" in self.part.environment:
            made["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that what lies behind a tensor is not another's
        return made

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
        """With all its children, which are in the process group that it leads."""
        self._stopped = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)

    def _read(self, took: float) -> Outcome:
        entries = []
        if self._report.exists():
            entries = [json.loads(line) for line in self._report.read_text(encoding="utf-8").splitlines()]
        made = Outcome(self.part, "ok", seconds=took)
        made.passed = sum(entry["outcome"] == "passed" for entry in entries)
        made.failures = [(entry["test"], entry["reason"]) for entry in entries if entry["outcome"] == "failed"]
        skips = collections.Counter(entry["reason"] for entry in entries if entry["outcome"] == "skipped")
        made.skips = dict(skips)
        if self._lines.exists():
            made.lines = self._lines.read_text(encoding="utf-8").splitlines()
        code = self._process.returncode
        if self._stopped:
            made.result, made.reason = "STOPPED", f"after {took:.0f} s"
        elif made.failures or code not in (0, 5):
            made.result = "FAILED"
            if not made.failures:
                made.reason = f"exit status {code}; {self._last_words()}"
        elif not made.passed:
            made.result = "skipped"
            made.reason = "" if made.skips else "no test was collected"
        return made

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-400:]
