"""Import plugins in child processes with a time limit, so that one that crashes, hangs or exits is only reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Key = tuple[str, str]  # (kind, "distribution:name"), or ("package", module)
_POLL_S = 0.02
_TAIL_CHARS = 800


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one import. error: why it failed, "" if it did not. loader: what the dynamic loader said, if a
    compiled extension is to blame. ended: whether the child died or had to be killed. output: the end of what it wrote
    to standard error then. probe: of hardware, {"available", "reason", "description"} or {"error"}.
    heavy: of a package, the expensive modules that its import brought in."""

    error: str = ""
    loader: str = ""
    ended: bool = False
    output: str = ""
    warnings: tuple[str, ...] = ()
    probe: dict[str, Any] | None = None
    settings_error: str = ""
    heavy: tuple[str, ...] = ()


def import_in_children(
    plugins: Sequence[Key],
    *,
    packages: Sequence[str] = (),
    paths: Sequence[str] | None = None,
    timeout_s: float = 60.0,
) -> dict[Key, Outcome]:
    """Outcome of each, by key. One child a distribution, and a new one after each that ends it.

    packages: modules to import alone, before anything else. paths: folders to look for distributions in instead of
    this environment's; they go first on the child's sys.path. timeout_s: for each plugin.
    """
    outcomes: dict[Key, Outcome] = {}
    groups: dict[str, list[Key]] = {}
    for package in packages:
        groups[f"package {package}"] = [("package", package)]
    for kind, name in plugins:
        groups.setdefault(name.rpartition(":")[0], []).append((kind, name))
    for group in groups.values():
        remaining = list(group)
        while remaining:
            outcomes.update(_one_child(remaining, paths, timeout_s))
            remaining = [key for key in remaining if key not in outcomes]
    return outcomes


def _one_child(keys: list[Key], paths: Sequence[str] | None, timeout_s: float) -> dict[Key, Outcome]:
    """Outcomes of one child; at least the first key's."""
    with tempfile.TemporaryDirectory(prefix="core-checkup-") as folder:
        report, errors = Path(folder) / "report", Path(folder) / "stderr"
        report.touch()
        request = {
            "report": str(report),
            "paths": list(paths) if paths is not None else None,
            "packages": [name for kind, name in keys if kind == "package"],
            "plugins": [key for key in keys if key[0] != "package"],
        }
        with errors.open("wb") as stderr:
            code = _run(json.dumps(request).encode(), report, stderr, timeout_s)
        lines = [json.loads(line) for line in report.read_text().splitlines() if line.endswith("}")]
        output = errors.read_text(errors="replace").strip()[-_TAIL_CHARS:]
    outcomes = {_key(line["end"]): _outcome(line) for line in lines if "end" in line}
    if len(outcomes) == len(keys):
        return outcomes
    begun = [_key(line["begin"]) for line in lines if "begin" in line]
    culprit = next((key for key in begun if key not in outcomes), next(key for key in keys if key not in outcomes))
    outcomes[culprit] = Outcome(error=_ended(code, timeout_s), ended=True, output=output)
    return outcomes


def _run(request: bytes, report: Path, stderr: Any, timeout_s: float) -> int | None:
    """Exit code, negative for a signal; None if it made no progress for `timeout_s` and was killed."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "core.registry.health.checkup"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=env,
        start_new_session=True,
    )
    assert child.stdin is not None
    in_time = True
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code says why
            child.stdin.write(request)
            child.stdin.close()
        size, last_s = 0, time.monotonic()
        while in_time and not _has_exited(child):
            time.sleep(_POLL_S)
            if report.stat().st_size != size:
                size, last_s = report.stat().st_size, time.monotonic()
            in_time = time.monotonic() - last_s <= timeout_s
    finally:
        _end(child)
    return child.returncode if in_time else None


def _has_exited(child: subprocess.Popen[bytes]) -> bool:
    """Without reaping it: its number must stay its own until its group has been ended."""
    if not hasattr(os, "waitid"):
        return child.poll() is not None
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(child: subprocess.Popen[bytes]) -> None:
    """The child, if it still runs, and what it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _ended(code: int | None, timeout_s: float) -> str:
    if code is None:
        return f"its import did not end within {timeout_s:g} s"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"its import crashed the interpreter ({name})"
    return f"its import ended the interpreter (exit code {code})"


def _outcome(line: dict[str, Any]) -> Outcome:
    known = {name: line[name] for name in ("error", "loader", "probe", "settings_error") if name in line}
    return Outcome(**known, warnings=tuple(line.get("warnings", ())), heavy=tuple(line.get("heavy", ())))


def _key(pair: list[str]) -> Key:
    return pair[0], pair[1]
