"""Real wheels in an empty environment: `core` alone, then plugins one by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))

pytestmark = [pytest.mark.wheels, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All distributions of this repository as wheels, built from a copy so that nothing is left behind."""
    place = tmp_path_factory.mktemp("wheels")
    for source in [ROOT, *PLUGINS]:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(source)],
            check=True,
            capture_output=True,
        )
    return place


class Environment:
    """A fresh virtual environment."""

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


def test_core_alone_then_plugin_by_plugin(wheels: Path, checkpoint: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment", wheels)
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

    rest = [path for path in wheels.glob("plugin_*.whl") if not path.name.startswith("plugin_llama")]
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
