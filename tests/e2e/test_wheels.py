"""Real wheels in an empty environment: `core` alone, then plugins one by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.testing.checkpoint import write_tiny_checkpoint
from tests.e2e.process import ServerProcess
from tests.e2e.wheels import Environment, make_plugin

MakeEnvironment = Callable[..., Environment]

pytestmark = [pytest.mark.wheels, pytest.mark.slow, pytest.mark.timeout(1200)]


class FullEnvironment:
    """A fresh virtual environment whose dependencies pip finds by itself."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        self.wheels = wheels
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)

    def pip(self, *words: str) -> None:
        command = [self.folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def wheel(self, name: str) -> str:
        return str(next(self.wheels.glob(f"{name}-*.whl")))

    def core(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("CORE_", "PYTHON"))}
        return subprocess.run(
            [self.folder / "bin" / "core", *words],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env=environment,
            cwd=self.folder,
        )


@pytest.fixture(scope="module")
def latent_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GLM-4.7-Flash checkpoint."""
    latent = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    folder = tmp_path_factory.mktemp("flash")
    return write_tiny_checkpoint(folder, "glm4_moe_lite", num_key_value_heads=4, **latent, **experts)


def test_core_alone_then_plugin_by_plugin(wheels: Path, checkpoint: Path, tmp_path: Path) -> None:
    environment = FullEnvironment(tmp_path / "environment", wheels)
    import torch

    environment.pip(f"torch=={torch.__version__.split('+')[0]}")  # the same build, not a larger one
    environment.pip(environment.wheel("core"))
    assert "llama" not in environment.core("plugins", "list").stdout
    listed = json.loads(environment.core("plugins", "list", "--json").stdout)
    text = json.dumps(listed)
    assert all(name in text for name in ("cpu", "torch_native", "radix", "none"))

    nothing = environment.core("generate", "Hello")
    assert nothing.returncode == 2
    assert "--model" in nothing.stderr
    missing = environment.core("generate", "Hello", "--model", str(checkpoint))
    assert missing.returncode == 2
    assert "plugin-llama" in missing.stderr

    # A plugin finds the core that is installed; the other way round works as well (see the order below).
    environment.pip("--no-deps", environment.wheel("plugin_llama"))
    made = environment.core("generate", "Hello", "--model", str(checkpoint), "--max-tokens", "4")
    assert made.returncode == 0, made.stderr
    assert "Traceback" not in made.stderr

    rest = [path for path in wheels.glob("plugin_*.whl") if path.name.startswith(("plugin_qwen", "plugin_demo"))]
    environment.pip("--no-deps", *map(str, sorted(rest, reverse=True)))
    answer = environment.core("generate", "What is 12 + 30?", "--temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert "42" in answer.stdout

    subprocess.run(
        [environment.folder / "bin" / "python", "-m", "pip", "uninstall", "-q", "-y", "plugin-llama"], check=True
    )
    gone = environment.core("generate", "Hello", "--model", str(checkpoint))
    assert gone.returncode == 2
    assert "plugin-llama" in gone.stderr
    shutil.rmtree(environment.folder)


@pytest.mark.parametrize(
    "names",
    [(), ("plugin-glm4",), ("plugin-qwen", "plugin-demo"), ("plugin-llama", "plugin-cpu-native", "plugin-qwen")],
)
def test_core_and_any_subset_of_plugins(make_environment: MakeEnvironment, names: tuple[str, ...]) -> None:
    environment = make_environment("core", *names)
    listed = environment.list_plugins()
    assert {row["distribution"] for row in listed} == {"core", *names}
    assert {row["state"] for row in listed} == {"available"}
    if len(names) > 2:  # every plugin is imported, which takes torch and time
        done = environment.core("plugins", "list", "--check")
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_plugin_is_served_and_missed(
    make_environment: MakeEnvironment, latent_checkpoint: Path, tmp_path: Path
) -> None:
    environment = make_environment("core", "plugin-glm4")
    flags = ("--cpu-threads", "1", "--served-model-name", "flash")
    log = tmp_path / "server.log"
    with ServerProcess(
        latent_checkpoint, log, *flags, python=environment.python, environment=environment.variables()
    ) as server:
        question = {"model": "flash", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=question, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 5

    environment.uninstall("plugin-glm4")
    gone = environment.core("generate", "Hi", "--model", latent_checkpoint)
    assert gone.returncode == 2
    assert "Glm4MoeLiteForCausalLM" in gone.stderr
    assert "plugin-glm4" in gone.stderr
    assert "Traceback" not in gone.stderr


NATIVE = """
from core.attention.torch_native import TorchNativeAttention

class Plugin(TorchNativeAttention):
    pass
"""
NUM_DUMMIES = 50


@pytest.fixture(scope="module")
def crowd(make_environment: MakeEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with much that is broken, each in its own way, and fifty plugins that nobody asked for."""
    place = tmp_path_factory.mktemp("made")
    made = [
        make_plugin(place, "broken-one", kind="attention", entry="broken", code="raise OSError('no such library')"),
        make_plugin(place, "first-twin", kind="attention", entry="twin", code=NATIVE),
        make_plugin(place, "second-twin", kind="attention", entry="twin", code=NATIVE),
        make_plugin(place, "from-tomorrow", kind="attention", entry="tomorrow", code=NATIVE, api=(90, 91)),
    ]
    made += [
        make_plugin(
            place, f"dummy-{i}", kind="tool_parsers", entry=f"dummy{i}", code="raise AssertionError('imported')"
        )
        for i in range(NUM_DUMMIES)
    ]
    return make_environment("core", "plugin-qwen", "plugin-demo", "example-attention", *made)


def ask(environment: Environment, *words: str) -> Any:
    return environment.core("generate", "What is 12 + 30?", "--temperature", "0", "--cpu-threads", "1", *words)


@pytest.mark.parametrize("name", ["torch_native", "streaming", "first-twin:twin", "second-twin:twin"])
def test_attention_plugins_coexist(crowd: Environment, name: str) -> None:
    answer = ask(crowd, "--attention-backend", name)
    assert answer.returncode == 0, answer.stderr
    assert "42" in answer.stdout
    imported = {"first-twin:twin": {"first_twin"}, "second-twin:twin": {"second_twin"}}.get(name, set())
    assert imported <= crowd.imported()


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("broken", ("broken-one 1.0", "OSError: no such library")),
        ("twin", ("first-twin 1.0", "second-twin 1.0", "first-twin:twin")),
        ("tomorrow", ("from-tomorrow 1.0", "version 90 to 91", "needs a newer core")),
    ],
)
def test_selected_and_unusable_stops_the_start(crowd: Environment, name: str, texts: tuple[str, ...]) -> None:
    done = ask(crowd, "--attention-backend", name)
    assert done.returncode == 2, done.stderr
    for text in texts:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    # Versions are compared before anything is imported.
    assert not {"from_tomorrow", "dummy_0", "dummy_49"} & crowd.imported()


def test_unselected_and_unusable_is_listed(crowd: Environment) -> None:
    """The answer of the first test here came with all of them installed."""
    checked = json.loads(crowd.core("plugins", "list", "--check", "--json").stdout)["plugins"]
    states = {row["name"]: (row["state"], row["reason"]) for row in checked if row["kind"] == "attention"}
    assert states["broken"][0] == "failed"
    assert "no such library" in states["broken"][1]
    assert states["tomorrow"][0] == "unavailable"
    assert states["streaming"][0] == "available"
    assert ask(crowd).returncode == 0


def test_listing_imports_no_plugin(make_environment: MakeEnvironment, tmp_path: Path) -> None:
    made = [
        make_plugin(tmp_path, f"dummy-{i}", kind="attention", entry=f"dummy{i}", code="import torch")
        for i in range(NUM_DUMMIES)
    ]
    environment = make_environment("core", *made)
    code = "import sys; from core.cli.main import main; main(['plugins', 'list']); print(*sys.modules, file=sys.stderr)"
    done = environment.run("-c", code)
    assert done.stdout.count("dummy") >= NUM_DUMMIES
    assert "torch" not in done.stderr.split()
    assert environment.imported() == set()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        environment.core("plugins", "list")
        times.append(time.perf_counter() - started)
    print(f"core plugins list with {NUM_DUMMIES} plugins: {min(times):.2f} s")
