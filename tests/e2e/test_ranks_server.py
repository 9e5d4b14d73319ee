"""A server whose model is spread over two processes: it answers as one does, and survives what happens to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from core.interfaces.errors import ConfigError
from core.llm import LLM
from tests.e2e.process import ServerProcess, wait_until
from tests.e2e.test_faults import events, start_stream

pytest.importorskip("plugin_demo")
pytestmark = pytest.mark.slow
FLAGS = ("--dtype", "float32", "--cpu-threads", "1", "--served-model-name", "tiny", "--max-running-requests", "4")
SETTINGS = {"dtype": "float32", "cpu_threads": 1, "max_running_requests": 4, "device": "cpu"}
ASKED = [{"role": "user", "content": "What is 7 + 5?"}]
CHAT = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 24}


def rank_of(server: ServerProcess) -> psutil.Process | None:
    """The process of rank 1; None while there is none."""
    try:
        return next(child for child in server.children() if "core.engine.rank" in child.cmdline())
    except (StopIteration, psutil.Error):
        return None


def ask(server: ServerProcess) -> str:
    reply = httpx.post(server.url + "/v1/chat/completions", json=CHAT, timeout=60)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def folders() -> set[str]:
    return {name for name in os.listdir("/tmp") if name.startswith("core-ranks")}


def test_a_server_of_two_ranks(tmp_path: Path) -> None:
    with LLM(**SETTINGS) as one:
        want = one.chat(ASKED, {"temperature": 0.0, "max_tokens": 24})[0].text
    before = folders()
    with ServerProcess(None, tmp_path / "log", *FLAGS, "--tp", "2") as server:
        assert ask(server) == want
        info = httpx.get(server.url + "/server_info", timeout=10).json()
        assert "'tensor_parallel_size': '2'" in str(info)
        assert "core.engine: [rank 1] ready on cpu" in server.text()

        # Killed under load: the stream ends with an error that says so, and the engine is started again.
        lines: list[str] = []
        thread = start_stream(server.url, lines)
        wait_until(lambda: len(lines) > 5, what="tokens")
        victim = rank_of(server)
        assert victim is not None
        victim.kill()
        thread.join(20)
        assert not thread.is_alive()
        told = next(event["error"]["message"] for event in events(lines) if "error" in event)
        assert f"rank 1 (process {victim.pid}) was killed by signal 9" in told
        wait_until(lambda: (again := rank_of(server)) is not None and again.pid != victim.pid, 60, "another rank")
        wait_until(lambda: server.status("/ready") == 200, 60, "ready again")
        assert ask(server) == want

        # Killed while nothing runs: noticed without a request.
        idle = rank_of(server)
        assert idle is not None
        idle.kill()
        wait_until(lambda: (again := rank_of(server)) is not None and again.pid != idle.pid, 60, "another rank")
        wait_until(lambda: server.status("/ready") == 200, 60, "ready again")
        assert ask(server) == want

        # The server itself: nobody stays behind, nor a file.
        children = server.children()
        assert rank_of(server) in children
        os.kill(server.process.pid, signal.SIGKILL)
        assert not psutil.wait_procs(children, timeout=10)[1]
        assert folders() == before


def own_ranks() -> set[int]:
    """Ranks that this process has started and that have not ended."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "core.engine.rank" in child.cmdline()
    }


def test_a_library_of_two_ranks_and_sizes_that_do_not_divide() -> None:
    prompts, greedy = ["One two three", "The sum of 3 and 4"], {"temperature": 0.0, "max_tokens": 16}
    with LLM(**SETTINGS) as one:
        want = [output.text for output in one.generate(prompts, greedy)]
    before = own_ranks()
    with LLM(**SETTINGS, tensor_parallel_size=2) as two:
        assert len(own_ranks() - before) == 1
        assert [output.text for output in two.generate(prompts, greedy)] == want
        with pytest.raises(ConfigError, match=r"already|shared evenly by 3"):
            LLM(**SETTINGS, tensor_parallel_size=3)
        assert [output.text for output in two.generate(prompts, greedy)] == want, "the refused one changed nothing"
    assert own_ranks() == before
