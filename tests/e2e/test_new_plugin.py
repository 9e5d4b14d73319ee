"""docs/tutorial.md as a new author would follow it: every command of the page, in its order, in a fresh environment."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from types import TracebackType

import httpx
import pytest

from tests.documentation.blocks import ROOT, blocks
from tests.documentation.session import request_of

from .process import free_port

PAGE = ROOT / "docs" / "tutorial.md"
DEFAULT_PORT = "30000"
SCRIPTS = {"pip": "pip", "pytest": "pytest", "core": "core.cli.main"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Author:
    """A shell of somebody who has core in a virtual environment, and no way to a package index.

    seconds: (command, wall time), of `core serve` until it is ready. output: (command, what it printed).
    """

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "work"
        self.cwd.mkdir()
        self.port = free_port()
        self.log = folder / "server.log"
        self.server: subprocess.Popen[bytes] | None = None
        self.seconds: list[tuple[str, float]] = []
        self.output: list[tuple[str, str]] = []
        bin_folder = self._make_environment(folder / "environment")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CORE_", "PIP_", "PYTEST_"))}
        self.env = inherited | {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",  # all is here, but for what torch wants for building extensions
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's spelling of "yes"
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def __enter__(self) -> Author:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop_server()

    @staticmethod
    def _make_environment(folder: Path) -> Path:
        """What this interpreter has, seen from an environment of its own, so that nothing is installed into ours."""
        venv.create(folder, with_pip=False, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        library = Path(os.__file__).parent
        seen = [path for path in sys.path if path and Path(path).is_dir() and not Path(path).is_relative_to(library)]
        seen += [path for path in sys.path if path.endswith("site-packages")]
        (site / "inherited.pth").write_text("\n".join(dict.fromkeys(seen)) + "\n")
        for name, module in SCRIPTS.items():
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
            script.chmod(0o755)
        return folder / "bin"

    def run(self, line: str) -> None:
        """One command of the page."""
        words = shlex.split(line)
        start = time.monotonic()
        if words[0] == "cd":
            self.cwd = self.cwd / words[1]
            assert self.cwd.is_dir(), line
            return
        if words[:2] == ["core", "serve"]:
            self._serve(line)
        elif words[0] == "curl":
            reply = request_of(shlex.split(line.replace(DEFAULT_PORT, str(self.port)))[1:])
            assert reply.is_success, f"{line}\n{reply.status_code} {reply.text}"
            self.output.append((line, reply.text))
        else:
            done = subprocess.run(
                ["sh", "-c", line.replace(DEFAULT_PORT, str(self.port))],
                cwd=self.cwd, env=self.env, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            self.output.append((line, done.stdout))
        self.seconds.append((line, time.monotonic() - start))

    def _serve(self, line: str) -> None:
        with self.log.open("wb") as out:
            self.server = subprocess.Popen(
                ["sh", "-c", f"exec {line} --port {self.port}"],
                cwd=self.cwd, env=self.env, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            assert self.server.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"never ready:\n{self.log.read_text()}")

    def stop_server(self) -> int:
        """Ctrl-C, as the page says."""
        if self.server is None:
            return 0
        server, self.server = self.server, None
        server.send_signal(signal.SIGINT)
        return server.wait(60)


def commands() -> list[str]:
    """Of all blocks, continued lines joined."""
    lines: list[str] = []
    for block in blocks(PAGE):
        assert block.language == "bash", block.where
        lines += block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_every_step_of_the_tutorial(tmp_path: Path) -> None:
    with Author(tmp_path) as author:
        for line in commands():
            if line.startswith("pip uninstall"):
                assert author.stop_server() == 0, author.log.read_text()
            author.run(line)
        for line, seconds in author.seconds:
            print(f"{seconds:6.1f} s  {line}")
        check(author)


def check(author: Author) -> None:
    """What the page says about what is seen."""

    def said(beginning: str) -> list[str]:
        return [text for line, text in author.output if line.startswith(beginning)]

    installed, removed = said("core plugins list")
    assert "MymodelForCausalLM" in installed
    assert "plugin-mymodel" in installed
    assert "MymodelForCausalLM" not in removed
    (tests,) = said("pytest")
    assert " passed" in tests
    assert "failed" not in tests
    (validated,) = said("core plugins validate")
    assert "ready" in validated
    (explained,) = said("core plugins explain")
    assert "model: MymodelForCausalLM" in explained
    (answer,) = said("curl")
    reply = json.loads(answer)
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert reply["usage"]["completion_tokens"] >= 1


def test_without_the_plugin_the_error_names_what_to_install(tmp_path: Path) -> None:
    from core.cli.plugins_new import render

    package = render("models", "unheardof")
    package.write(tmp_path / "package")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "package" / "src"), "OMP_NUM_THREADS": "1"}
    folder = str(tmp_path / "checkpoint")
    subprocess.run([sys.executable, "-m", "plugin_unheardof.tiny", folder], env=env, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "core.cli.main", "plugins", "explain", "--model", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "UnheardofForCausalLM" in done.stderr
    assert "plugin-unheardof" in done.stderr
