"""A real `core serve` process for tests: start, wait until ready, ask, stop; its log is shown if it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx
import psutil


class ServerProcess:
    """`core serve` in a process of its own on a free port. Use as a context manager.

    python, environment: of the process; None takes the tests' own, without core's variables.
    """

    def __init__(
        self,
        model: Path | str | None,
        log: Path,
        *flags: str,
        python: Path | str = sys.executable,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(python), "-m", "core.cli.main", "serve", "--port", str(self.port), *flags]
        if model is not None:
            command += ["--model", str(model)]
        environment = environment or {k: v for k, v in os.environ.items() if not k.startswith("CORE_")}
        self._output = log.open("wb")
        # The log's folder: from a source tree Python would import that, whatever is installed.
        self.process = subprocess.Popen(
            command, stdout=self._output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            cwd=log.parent,
        )  # fmt: skip

    def __enter__(self) -> ServerProcess:
        self.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is not None:
            print(f"--- server log ---\n{self.text()}")

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Poll /ready until 200; raises with the log if the process leaves first."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"server left with {self.process.returncode}:\n{self.text()}")
            if self.status("/ready") == 200:
                return
            time.sleep(0.1)
        self.stop()
        raise TimeoutError(f"not ready after {timeout_s} s:\n{self.text()}")

    def status(self, path: str) -> int:
        """HTTP status of a GET, 0 if nothing answers."""
        try:
            return httpx.get(self.url + path, timeout=5.0).status_code
        except httpx.HTTPError:
            return 0

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, or over those samples that hold `label`. Raises LookupError, listing
        what there is, if it is not exposed."""
        total, names = 0.0, set()
        for line in httpx.get(self.url + "/metrics", timeout=5.0).text.splitlines():
            if line and not line.startswith("#"):
                sample, value = line.rsplit(" ", 1)
                names.add(sample.split("{", 1)[0])
                if sample.split("{", 1)[0] == name and label in sample:
                    total += float(value)
        if name not in names:
            raise LookupError(f"{name} is not among {sorted(names)}")
        return total

    def children(self) -> list[psutil.Process]:
        """All processes below the server."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process:
        """The engine's process: the child that holds the model."""
        return max(self.children(), key=lambda child: child.memory_info().rss)

    def wait_exit(self, timeout_s: float) -> int:
        """Exit status; raises if it is still there."""
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """End the whole process group, at once if it does not go by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)
        self._output.close()

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")


def free_port() -> int:
    """A port nobody listens on right now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: object, timeout_s: float = 10.0, what: str = "condition") -> None:
    """Poll a callable until it is true."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not hold within {timeout_s} s")
