"""What happens when things break: engine killed, parent killed, overload, signals, broken checkpoints."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from core.testing.checkpoint import write_tiny_checkpoint
from tests.e2e.process import ServerProcess, free_port, wait_until

LONG: dict[str, Any] = {
    "prompt": "Hello",
    "max_tokens": 1900,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
    "model": "tiny",
}
FLAGS = ("--served-model-name", "tiny", "--cpu-threads", "1", "--page-size", "4")


def start_stream(url: str, lines: list[str]) -> Any:
    """A thread that reads a long stream into `lines` until it ends."""
    import threading

    def read() -> None:
        with httpx.stream("POST", url + "/v1/completions", json=LONG, timeout=60) as response:
            for line in response.iter_lines():
                if line:
                    lines.append(line)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.slow
def test_engine_killed_mid_stream_then_restarted(checkpoint: Path, tmp_path: Path) -> None:
    with ServerProcess(checkpoint, tmp_path / "log", *FLAGS) as server:
        lines: list[str] = []
        thread = start_stream(server.url, lines)
        wait_until(lambda: len(lines) > 5, what="tokens")
        victim = server.engine()
        victim.kill()
        thread.join(10)
        assert not thread.is_alive()
        assert any("error" in event for event in events(lines))
        wait_until(lambda: server.status("/ready") == 503 or victim.pid != server.engine().pid, 5, "not ready")
        wait_until(lambda: server.status("/ready") == 200, 60, "ready again")
        reply = httpx.post(server.url + "/v1/completions", json=LONG | {"stream": False, "max_tokens": 3}, timeout=30)
        assert reply.status_code == 200


@pytest.mark.slow
def test_engine_killed_with_policy_exit(checkpoint: Path, tmp_path: Path) -> None:
    server = ServerProcess(checkpoint, tmp_path / "log", *FLAGS, "--on-engine-death", "exit")
    try:
        server.wait_ready()
        lines: list[str] = []
        thread = start_stream(server.url, lines)
        wait_until(lambda: len(lines) > 5, what="tokens")
        server.engine().kill()
        assert server.wait_exit(5.0) != 0
        thread.join(5)
        assert any("error" in event for event in events(lines))
    finally:
        server.stop()


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(checkpoint: Path, tmp_path: Path) -> None:
    server = ServerProcess(checkpoint, tmp_path / "log", *FLAGS)
    try:
        server.wait_ready()
        children = server.children()
        assert children
        os.kill(server.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
    finally:
        server.stop()


@pytest.mark.slow
def test_sigterm_drains_then_leaves(checkpoint: Path, tmp_path: Path) -> None:
    server = ServerProcess(checkpoint, tmp_path / "log", *FLAGS)
    try:
        server.wait_ready()
        lines: list[str] = []
        thread = start_stream(server.url, lines)
        wait_until(lambda: len(lines) > 5, what="tokens")
        children = server.children()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(60) == 0
        thread.join(5)
        finish = [e["choices"][0]["finish_reason"] for e in events(lines) if e.get("choices")]
        assert finish[-1] == "length"  # it ran to its end
        assert not psutil.wait_procs(children, timeout=5)[1]
    finally:
        server.stop()


@pytest.mark.slow
def test_ctrl_c_twice_leaves_at_once(checkpoint: Path, tmp_path: Path) -> None:
    server = ServerProcess(checkpoint, tmp_path / "log", *FLAGS)
    try:
        server.wait_ready()
        lines: list[str] = []
        thread = start_stream(server.url, lines)
        wait_until(lambda: len(lines) > 5, what="tokens")
        children = server.children()
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        server.wait_exit(5)
        assert not psutil.wait_procs(children, timeout=5)[1]
        thread.join(5)
        assert not thread.is_alive()
    finally:
        server.stop()


@pytest.mark.slow
async def test_two_thousand_requests_at_a_bounded_queue(checkpoint: Path, tmp_path: Path) -> None:
    limits = ("--max-running-requests", "16", "--max-queued-requests", "200")
    with ServerProcess(checkpoint, tmp_path / "log", *FLAGS, *limits) as server:
        body = {"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=2000)
        ) as client:
            replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(2000)))
        by_status = {status: [r for r in replies if r.status_code == status] for status in (200, 429)}
        assert len(by_status[200]) + len(by_status[429]) == 2000
        assert len(by_status[200]) >= 216
        assert len(by_status[429]) > 0
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in by_status[429])
        assert {reply.json()["choices"][0]["text"] for reply in by_status[200]} == {
            by_status[200][0].json()["choices"][0]["text"]
        }
        wait_until(lambda: server.metric("core_running_requests") == 0, what="idle")


def run_serve(*flags: str) -> subprocess.CompletedProcess[str]:
    """`core serve` that is expected to leave by itself."""
    return subprocess.run(
        [sys.executable, "-m", "core.cli.main", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_port_in_use(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_serve("--model", str(checkpoint), "--port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_architecture_lists_what_is_installed(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["MartianForCausalLM"],
        "model_type": "martian",
    }
    (folder / "config.json").write_text(json.dumps(config))
    done = run_serve("--model", str(folder), "--port", str(free_port()))
    assert done.returncode == 2
    assert "MartianForCausalLM" in done.stderr
    assert "LlamaForCausalLM" in done.stderr
    assert "plugin-martian" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "truncated", "shape"])
def test_broken_weights_stop_the_start_and_are_named(tmp_path: Path, damage: str) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", "llama")
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        config = json.loads((folder / "config.json").read_text())
        config["intermediate_size"] += 32
        (folder / "config.json").write_text(json.dumps(config))
    done = run_serve("--model", str(folder), "--port", str(free_port()))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert {"missing": "safetensors", "truncated": "model.safetensors", "shape": "mlp"}[damage] in done.stderr


def test_kv_memory_too_small_for_one_request(checkpoint: Path) -> None:
    done = run_serve("--model", str(checkpoint), "--port", str(free_port()), "--kv-cache-bytes", "100")
    assert done.returncode == 2, done.stderr
    assert "kv" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_unknown_flag_suggests_the_nearest() -> None:
    done = run_serve("--prot", "1")
    assert done.returncode == 2
    assert "--port" in done.stderr


@pytest.mark.slow
def test_api_key(checkpoint: Path, tmp_path: Path) -> None:
    with ServerProcess(checkpoint, tmp_path / "log", *FLAGS, "--api-key", "secret") as server:
        assert httpx.get(server.url + "/v1/models").status_code == 401
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert server.status("/health") == 200


@pytest.mark.slow
async def test_a_storm_of_aborts_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    small = ("--max-running-requests", "24", "--max-total-tokens", "3000")  # preemption and eviction happen, too
    with ServerProcess(checkpoint, tmp_path / "log", *FLAGS, *small) as server:
        rng = random.Random(0)
        finished = 0

        async def request(client: httpx.AsyncClient, number: int) -> None:
            nonlocal finished
            await asyncio.sleep(rng.random() * 3)
            ids = [rng.randrange(10, 300) for _ in range(rng.randrange(1, 200))]
            body = LONG | {"prompt": [5, 6, 7] * rng.randrange(40) + ids, "max_tokens": rng.randrange(1, 200)}
            patience = rng.choice([0, 1, 5, 20, None])
            async with client.stream("POST", "/v1/completions", json=body) as response:
                assert response.status_code == 200
                count = 0
                async for line in response.aiter_lines():
                    count += bool(line)
                    if count == patience:
                        return  # gone without a word
                    assert "error" not in line
            finished += 1

        limits = httpx.Limits(max_connections=150)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(request(client, number) for number in range(300)))
        assert 0 < finished < 300
        wait_until(lambda: server.metric("core_running_requests") == 0, what="idle")
        wait_until(
            lambda: (
                server.metric("core_kv_pages_free") + server.metric("core_kv_pages_cached")
                == server.metric("core_kv_pages")
            ),
            what="all pages free or cached",
        )
        assert httpx.post(server.url + "/flush_cache").status_code == 200
        wait_until(lambda: server.metric("core_kv_pages_free") == server.metric("core_kv_pages"), what="all free")
        assert server.metric("core_failed_steps_total") == 0
        assert server.metric("core_engine_restarts_total") == 0


def test_more_descriptors_are_asked_for_than_systems_give_by_themselves() -> None:
    program = (
        "import resource; from core.server.main import raise_file_limit; "
        "hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); raise_file_limit(); "
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
