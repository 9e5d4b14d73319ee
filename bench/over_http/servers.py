"""What is measured, in processes of its own, and the client that measures servers."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

READY_S = 600.0
NAME = "demo"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs here. pid: of its main process."""

    port: int
    pid: int

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far."""
        main = psutil.Process(self.pid)
        others = [child.cpu_times() for child in main.children(recursive=True)]
        times = main.cpu_times()
        return {
            "server": times.user + times.system,
            "engine": sum(other.user + other.system for other in others),
        }


class Engine:
    """Our engine in a process of its own: no server's memory or threads are in it. A context manager."""

    def __init__(self, args: argparse.Namespace) -> None:
        command = [
            sys.executable, "-m", "bench.over_http.engine", "--model", str(args.model), "--seconds", str(args.seconds),
            "--input-len", str(args.input_len), "--output-len", str(args.output_len), "--dtype", args.dtype,
            "--pause-ms", str(args.pause_ms),
        ]  # fmt: skip
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __enter__(self) -> Engine:
        """Raises RuntimeError with the end of its log if it does not start."""
        try:
            self._line("READY")
        except RuntimeError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def load(self, streams: int, turn: int) -> dict[str, Any]:
        """Its figures with so many streams at once; cpu_s: of its process. Raises RuntimeError if it left."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{streams} {turn}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line("RESULT"))
        return found

    def _line(self, word: str) -> str:
        """What follows `word` in the next line that begins with it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line[len(word) :]
        self._log.seek(0)
        raise RuntimeError(f"the engine left: {self._log.read().strip()[-600:]}")


@contextmanager
def core_server(args: argparse.Namespace) -> Iterator[Server]:
    """Our server."""
    flags = ["--model", str(args.model), "--served-model-name", NAME, "--dtype", args.dtype, "--log-interval-s", "0"]
    with _serving([sys.executable, "-m", "core.cli.main", "serve", *flags], "/ready") as server:
        yield server


@contextmanager
def vllm_server(args: argparse.Namespace, python: Path) -> Iterator[Server]:
    """vLLM's server. As it is by default, but for the context, the memory and the number of streams."""
    flags = [
        "--model", str(args.model), "--served-model-name", NAME, "--dtype", args.dtype, "--max-model-len", "4096",
        "--max-num-seqs", "256",
    ]  # fmt: skip
    more = {
        "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    # Its documentation advises to preload Intel's OpenMP, which its own packages bring.
    if runtime := next(iter(sorted(python.parents[1].glob("lib/libiomp5.so"))), None):
        more["LD_PRELOAD"] = str(runtime)
    # Not `vllm serve`: it asks for the version of a distribution called vllm, and this one is vllm-cpu.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", *flags]
    with _serving(command, "/health", more) as server:
        yield server


def load(server: Server, args: argparse.Namespace, streams: int, turn: int) -> dict[str, Any]:
    """Figures of a server with so many streams open at once; cpu_s: processor seconds of its main process, of all
    others that it started (the engine's among them), and of the client.

    Raises RuntimeError if a request goes wrong.
    """
    command = [
        sys.executable, "-m", "bench.over_http.client", "--port", str(server.port), "--model", NAME,
        "--streams", str(streams), "--seconds", str(args.seconds), "--input-len", str(args.input_len),
        "--output-len", str(args.output_len), "--turn", str(turn), "--pause-ms", str(args.pause_ms),
    ]  # fmt: skip
    began: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as client:
        assert client.stdout is not None
        assert client.stderr is not None
        for line in client.stdout:
            if line == "BEGIN\n":
                began = server.cpu_s()
            elif line.startswith("RESULT "):
                ended = server.cpu_s()
                found: dict[str, Any] = json.loads(line[7:])
                own = {"client": found.pop("own_cpu_s")}
                return found | {"cpu_s": {name: ended[name] - began[name] for name in ended} | own}
        raise RuntimeError(f"the client left: {client.stderr.read()[-600:]}")


@contextmanager
def _serving(command: list[str], ready: str, more: dict[str, str] | None = None) -> Iterator[Server]:
    """The command with a free port, until it answers `ready`; ended with all its children. Raises RuntimeError with the
    end of its log if it leaves first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORE_")} | (more or {})
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=environment,
                start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + READY_S
            while not _answers(url + ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[2]} did not start: {log.read_text(errors='replace')[-600:]}")
                time.sleep(0.2)
            yield Server(port, process.pid)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False
