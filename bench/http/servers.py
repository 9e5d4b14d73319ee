"""Servers to measure, in processes of their own, and the client that measures them."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from bench.http.rounds import measure
from core.bench.datasets import Conversation
from core.bench.http_load import run_load
from core.bench.report import RequestRecord

READY_S = 300.0
NAME = "demo"


@contextmanager
def core_server(args: argparse.Namespace) -> Iterator[str]:
    """Our server; gives its URL."""
    flags = ["--model", str(args.model), "--served-model-name", NAME, "--dtype", args.dtype, "--log-interval-s", "0"]
    with _serving([sys.executable, "-m", "core.cli.main", "serve", *flags], "/ready") as url:
        yield url


@contextmanager
def vllm_server(args: argparse.Namespace, python: Path) -> Iterator[str]:
    """vLLM's server; gives its URL. As it is by default, but for the context, the memory and the number of streams."""
    flags = [
        "--model", str(args.model), "--served-model-name", NAME, "--dtype", args.dtype, "--max-model-len", "4096",
        "--max-num-seqs", "256",
    ]  # fmt: skip
    more = {
        "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(args.model), *flags[2:]]
    with _serving(command, "/health", more) as url:
        yield url


def load(url: str, args: argparse.Namespace, streams: int) -> dict[str, Any]:
    """Figures of a server with so many streams open at once."""

    def run(conversations: Sequence[Conversation]) -> tuple[list[RequestRecord], float]:
        return asyncio.run(run_load(url, NAME, conversations, concurrency=streams, request_rate=float("inf"), seed=0))

    return measure(run, streams, args.input_len, args.output_len, args.seconds)


@contextmanager
def _serving(command: list[str], ready: str, more: dict[str, str] | None = None) -> Iterator[str]:
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
            yield url
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
