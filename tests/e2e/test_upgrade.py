"""The upgrade drill: wheels built against API N, and cores that speak N+1 and N+2."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.interfaces.kinds import KINDS
from core.testing.checkpoint import write_tiny_checkpoint
from tests.e2e.wheels import ROOT, Environment, build

pytestmark = [pytest.mark.wheels, pytest.mark.slow, pytest.mark.timeout(600)]

MakeEnvironment = Callable[..., Environment]
NOW = max(kind.api for kind in KINDS.values())


def core_of_the_future(place: Path, *, newer_by: int) -> Path:
    """A wheel of today's core whose kinds all speak `newer_by` versions more, and the one before that."""
    source = place / f"core-{newer_by}"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "core", source / "core", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    api, oldest = NOW + newer_by, NOW + newer_by - 1
    kinds = source / "core" / "interfaces" / "kinds.py"
    # Every kind is made by one function, so its last step is the place where all can be changed.
    text, found = re.subn(
        r"(return Kind\(name, f\"core\.\{name\}\", )api, oldest_api,", rf"\g<1>{api}, {oldest},", kinds.read_text()
    )
    assert found == 1, "core.interfaces.kinds makes its kinds in another way now"
    kinds.write_text(text)
    manifest = source / "core" / "core_plugin.toml"  # core's own plugins move along with core
    manifest.write_text(re.sub(r"api = \[\d+, \d+\]", f"api = [{oldest}, {api}]", manifest.read_text()))
    project = source / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = "[^"]+"', f'version = "{newer_by}.99.0"', project.read_text(), count=1))
    wheels = place / f"wheels-{newer_by}"
    build([source], wheels)
    (wheel,) = wheels.glob("core-*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("gpt2"), "gpt2")


def generate(environment: Environment, checkpoint: Path, *flags: str) -> tuple[int, str, str]:
    usual = ("--max-tokens", "4", "--temperature", "0", "--cpu-threads", "1")
    done = environment.core("generate", "Hello", "--model", checkpoint, *usual, *flags)
    return done.returncode, done.stdout, done.stderr


def was_imported(environment: Environment, package: str) -> bool:
    """Wheels are installed without compiled files here, so these come from an import."""
    return any((environment.site / package).glob("**/__pycache__"))


def test_the_next_core_runs_it_unchanged_and_warns(
    make_environment: MakeEnvironment, checkpoint: Path, tmp_path: Path
) -> None:
    today = make_environment("core", "example-model", "example-attention")
    code, wanted, log = generate(today, checkpoint, "--attention-backend", "streaming")
    assert code == 0, log
    assert "will drop" not in log

    today.uninstall("core")
    tomorrow = today.install(core_of_the_future(tmp_path, newer_by=1))
    code, answer, log = generate(tomorrow, checkpoint, "--attention-backend", "streaming")
    assert code == 0, log
    assert answer == wanted
    for name in ("example-model 0.1.0", "example-attention 0.1.0"):
        (line,) = [line for line in log.splitlines() if name in line]
        assert f"version {NOW} of" in line
        assert f"core speaks {NOW + 1} and will drop {NOW}" in line
    assert {row["state"] for row in tomorrow.list_plugins()} == {"available"}


def test_the_one_after_refuses_it_before_import(
    make_environment: MakeEnvironment, checkpoint: Path, tmp_path: Path
) -> None:
    environment = make_environment(core_of_the_future(tmp_path, newer_by=2), "example-model", "example-attention")
    code, _, log = generate(environment, checkpoint)
    assert code == 2
    assert "example-model 0.1.0" in log
    assert f"version {NOW} of" in log
    assert f"speaks {NOW + 1} to {NOW + 2}" in log
    assert "pip install --upgrade example-model" in log
    assert "Traceback" not in log
    assert not was_imported(environment, "example_model")
    assert was_imported(environment, "core")
