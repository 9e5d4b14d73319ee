"""The packages in examples/, as wheels in empty environments: each passes its own tests there, and each is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.testing.checkpoint import write_tiny_checkpoint
from tests.e2e.process import ServerProcess
from tests.e2e.wheels import EXAMPLES, Environment

pytestmark = [pytest.mark.wheels, pytest.mark.slow, pytest.mark.timeout(600)]

MakeEnvironment = Callable[..., Environment]


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda path: path.name)
def test_passes_its_own_tests(make_environment: MakeEnvironment, source: Path, tmp_path: Path) -> None:
    """With nothing but core beside it. Its tests are copied, so that nothing of the source tree is found."""
    environment = make_environment("core", source.name)
    checked = environment.core("plugins", "validate", source)  # as its author would, before a release
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = shutil.copytree(source / "tests", tmp_path / "tests")
    report = tmp_path / "report.json"
    options = ("-q", "-p", "no:cacheprovider", "--contract-examples", "0.1", "--contract-report", report)
    done = environment.run("-m", "pytest", *options, tests, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    contracts: Any = json.loads(report.read_text())
    assert contracts, "no contract suite was run"


@pytest.fixture(scope="module")
def everything(make_environment: MakeEnvironment) -> Environment:
    """All examples together, with the demo model."""
    return make_environment("core", "plugin-qwen", "plugin-demo", *(source.name for source in EXAMPLES))


def test_all_are_listed(everything: Environment) -> None:
    states = {row["distribution"]: row["state"] for row in everything.list_plugins()}
    assert {source.name for source in EXAMPLES} <= states.keys()
    assert set(states.values()) == {"available"}


def test_none_is_used_unless_asked_for(everything: Environment) -> None:
    explained = json.loads(everything.core("plugins", "explain", "--json").stdout)
    chosen = {choice["plugin"].partition(":")[0] for choice in explained["choices"] if choice["plugin"]}
    assert explained["ok"]
    # Listeners listen; without a setting this one does nothing.
    assert not any(name.startswith("example-") for name in chosen - {"example-hooks"}), chosen


@pytest.mark.parametrize(
    ("flags", "package"),
    [
        (("--attention-backend", "streaming", "--set", "streaming.block_tokens=16"), "example_attention"),
        (("--quantization", "int8_rows"), "example_quant"),
        (("--device", "paper", "--set", "paper.memory_mib=64"), "example_mock_chip"),
    ],
)
def test_answers_with_it(everything: Environment, flags: tuple[str, ...], package: str) -> None:
    answer = everything.core("generate", "What is 12 + 30?", "--temperature", "0", *flags)
    assert answer.returncode == 0, answer.stderr
    assert "42" in answer.stdout
    # The answer alone would not tell who gave it. Wheels are installed without compiled files.
    assert any((everything.site / package).glob("**/__pycache__"))


def test_a_wrong_setting_stops_the_start(everything: Environment) -> None:
    flags = ("--attention-backend", "streaming", "--set", "streaming.block_tokens=none")
    done = everything.core("generate", "Hi", *flags)
    assert done.returncode == 2
    assert "block_tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_model_parser_hook_route_and_command(everything: Environment, tmp_path: Path) -> None:
    folder, requests = write_tiny_checkpoint(tmp_path / "gpt2", "gpt2"), tmp_path / "requests.jsonl"
    flags = ("--cpu-threads", "1", "--served-model-name", "tiny", "--tool-call-parser", "function_tags")
    extras = ("--routes", "titles", "--set", f"request_log.path={requests}")
    with ServerProcess(
        folder,
        tmp_path / "server.log",
        *flags,
        *extras,
        python=everything.python,
        environment=everything.variables(),
    ) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        title = httpx.post(f"{server.url}/titles", json={"text": "Once upon a time."}, timeout=60)
        info = httpx.get(f"{server.url}/server_info", timeout=60).json()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert title.status_code == 200, title.text
    assert title.json()["tokens"] >= 1
    for name in ("GPT2LMHeadModel", "function_tags", "request_log", "titles"):
        assert name in json.dumps(info), name
    log = everything.core("request-log", "summary", requests)
    assert log.stdout.startswith("2 requests ("), log.stdout + log.stderr
