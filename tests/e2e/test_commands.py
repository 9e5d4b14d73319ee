"""`core generate`, `core chat` and `core bench` as people type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import ServerProcess, free_port


def core(*words: str, text: str | None = None, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command; its standard input is `text` or empty."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CORE_")}
    return subprocess.run(
        [sys.executable, "-m", "core.cli.main", *words],
        input=text or "",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment,
    )


def test_generate_is_what_the_server_answers(server: ServerProcess, checkpoint: Path) -> None:
    options = {"max_tokens": 12, "temperature": 0}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}]} | options
    expected = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=30).json()
    done = core(
        "generate", "Hello there", "--model", str(checkpoint), "--max-tokens", "12", "--temperature", "0", "--json"
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["text"] == expected["choices"][0]["message"]["content"]
    assert made["completion_tokens"] == expected["usage"]["completion_tokens"]


def test_generate_reads_standard_input_and_needs_something(checkpoint: Path) -> None:
    done = core("generate", "--raw", "--model", str(checkpoint), "--max-tokens", "5", text="Once upon a time")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    nothing = core("generate", "--model", str(checkpoint))
    assert nothing.returncode == 2
    assert "prompt" in nothing.stderr


def test_generate_refuses_a_bad_parameter(checkpoint: Path) -> None:
    done = core("generate", "Hello", "--model", str(checkpoint), "--temperature", "-1")
    assert done.returncode == 2
    assert "temperature" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["local", "remote"])
def test_chat_talks_and_leaves(server: ServerProcess, checkpoint: Path, where: str) -> None:
    place = ["--url", server.url] if where == "remote" else ["--model", str(checkpoint)]
    lines = "Hello\n/system Be kind\nAnd you?\n/new\n/help\n/quit\n"
    done = core("chat", *place, "--max-tokens", "6", "--temperature", "0", text=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("core>") == 2
    assert "(new conversation)" in done.stdout
    assert "(6 tokens" in done.stdout


def test_chat_with_nobody_there_says_so() -> None:
    done = core("chat", "--url", f"http://127.0.0.1:{free_port()}", text="Hello\n")
    assert done.returncode == 0
    assert "is the server running" in done.stderr


@pytest.mark.parametrize("dataset", ["random", "shared-prefix", "multi-turn"])
def test_bench_serve_measures_what_happened(server: ServerProcess, dataset: str) -> None:
    shape = ["--num-prompts", "4", "--input-len", "12", "--output-len", "5", "--prefix-len", "64", "--turns", "2"]
    data = ["--dataset", dataset, "--concurrency", "2", "--vocab-size", "300", "--seed", "77"]
    done = core("bench", "serve", "--url", server.url, *shape, *data, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    summary = json.loads(done.stdout)
    requests = 8 if dataset == "multi-turn" else 4
    assert summary["requests"] == requests
    assert summary["failed"] == 0
    assert summary["output_tokens"] == requests * 5
    assert summary["ttft_ms"]["p50"] > 0
    if dataset == "random":
        assert summary["prompt_tokens"] == 4 * 12
    if dataset == "shared-prefix":
        assert summary["cached_tokens"] >= 2 * 64  # all but those that run at once with the first
    if dataset == "multi-turn":
        assert summary["cached_tokens"] > 0


def test_bench_serve_without_a_server_says_so() -> None:
    done = core("bench", "serve", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 2
    assert "is the server running" in done.stderr


def test_bench_offline_and_latency(checkpoint: Path) -> None:
    small = ["--model", str(checkpoint), "--input-len", "16", "--output-len", "4", "--json"]
    offline = core("bench", "offline", "--num-prompts", "3", *small)
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["output_tokens"] == 12
    latency = core("bench", "latency", "--batch-size", "2", "--repeat", "2", *small)
    assert latency.returncode == 0, latency.stderr
    summary = json.loads(latency.stdout)
    assert summary["output_tokens"] == 2 * 2 * 4
    assert summary["batch_s"] > 0
    chats = core("bench", "offline", "--dataset", "multi-turn", "--model", str(checkpoint))
    assert chats.returncode == 2
    assert "bench serve" in chats.stderr
