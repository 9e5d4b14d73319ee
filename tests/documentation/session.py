"""Runs a page's blocks from top to bottom, as a reader would: one folder, one server at a time."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import TracebackType

import httpx
import yaml

from core.registry.manifest import read_manifest

from .blocks import ROOT, Block

PORT = "30000"  # the default, which pages name
TIMEOUT_S = 180


class PageSession:
    """The reader's folder, with a checkpoint at ./my-checkpoint. `run` raises AssertionError naming page and line."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.server: subprocess.Popen[bytes] | None = None
        (folder / "my-checkpoint").symlink_to(checkpoint, target_is_directory=True)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CORE_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> PageSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop_server()

    def run(self, block: Block) -> None:
        match block.language:
            case "bash":
                for line in _lines(block.text):
                    self._command(line, block)
            case "python":
                self._python(block)
            case "toml":
                tomllib.loads(block.text)
                if block.text.startswith("# core_plugin.toml"):
                    path = self.folder / "core_plugin.toml"
                    path.write_text(block.text)
                    assert read_manifest(path).plugin, block.where
            case "yaml":
                assert isinstance(yaml.safe_load(block.text), dict), block.where
                if block.text.startswith("# file.yaml"):
                    (self.folder / "file.yaml").write_text(block.text)
                    self._process(["core", "config", "show", "--config", "file.yaml"], block)
            case "json":
                json.loads(block.text)
            case "text":
                pass
            case other:
                raise AssertionError(f"{block.where}: no check for blocks of language {other!r}; use text for output")

    # Commands

    def _command(self, line: str, block: Block) -> None:
        line = line.replace(PORT, str(self.port))
        words = shlex.split(line, comments=True)
        variables = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        match words:
            case ["make", *targets]:
                makefile = (ROOT / "Makefile").read_text()
                for target in (word for word in targets if "=" not in word):
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{block.where}: make {target}"
                if targets == ["serve"]:
                    self._serve(["core", "serve"], variables, block)
            case ["pip", "install" | "uninstall", *names]:
                for name in (word for word in names if not word.startswith("-")):
                    assert name in _installable(), f"{block.where}: {name} is no distribution of this repository"
            case ["core", "serve", *flags] if "--help" not in flags:
                self._serve(["core", "serve", *flags], variables, block)
            case ["core", "bench", "serve", *_] if "--help" not in words:
                self._need_server(block)
                self._process([*words, "--url", f"http://127.0.0.1:{self.port}"], block, variables)
            case ["core" | "python", *_]:
                self._process(words, block, variables)
            case ["curl", *_]:
                self._need_server(block)
                reply = request_of(words[1:])
                assert reply.is_success, f"{block.where}: {line}\n{reply.status_code} {reply.text}"
            case _:
                raise AssertionError(f"{block.where}: nobody knows how to check {line!r}")

    def _python(self, block: Block) -> None:
        if PORT in block.text:
            self._need_server(block)
        path = self.folder / "block.py"
        path.write_text(block.text.replace(PORT, str(self.port)))
        self._process([sys.executable, str(path)], block)

    def _process(self, words: list[str], block: Block, variables: dict[str, str] | None = None) -> str:
        if words[0] == "python":
            words = [sys.executable, *words[1:]]
            if (ROOT / words[1]).is_file():
                words[1] = str(ROOT / words[1])
        if words[0] == "core":
            words = [sys.executable, "-m", "core.cli.main", *words[1:]]
        done = subprocess.run(
            words, cwd=self.folder, env={**self.env, **(variables or {})}, input="Hello\n", capture_output=True,
            text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.where}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # The server

    def _need_server(self, block: Block) -> None:
        if self.server is None:
            self._serve(["core", "serve"], {}, block)

    def _serve(self, words: list[str], variables: dict[str, str], block: Block) -> None:
        self.stop_server()
        flags = [word for word in words[2:] if word not in ("0.0.0.0",)]
        flags = _without(_without(flags, "--port"), "--host")
        command = [sys.executable, "-m", "core.cli.main", "serve", *flags, "--port", str(self.port)]
        log = self.folder / "server.log"
        with log.open("wb") as out:
            self.server = subprocess.Popen(
                command, cwd=self.folder, env={**self.env, **variables}, stdout=out, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            assert self.server.poll() is None, f"{block.where}: {shlex.join(words)}\n{log.read_text()}"
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"{block.where}: {shlex.join(words)} was never ready\n{log.read_text()}")

    def stop_server(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(60)
            self.server = None


def request_of(words: list[str]) -> httpx.Response:
    """What `curl` with these words would ask; a fresh machine may lack it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-X", dest="method")
    asked = parser.parse_args(words)
    headers = dict(header.split(": ", 1) for header in asked.headers)
    method = asked.method or ("GET" if asked.data is None else "POST")
    return httpx.request(method, asked.url, headers=headers, content=asked.data, timeout=TIMEOUT_S)


def _lines(text: str) -> list[str]:
    """Commands, continued lines joined, comments and empty lines left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def _without(words: list[str], flag: str) -> list[str]:
    if flag not in words:
        return words
    at = words.index(flag)
    value = at + 1 < len(words) and not words[at + 1].startswith("--")
    return words[:at] + words[at + 1 + value :]


def _installable() -> set[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {"core", *(f"core[{extra}]" for extra in extras), "dist/*.whl", "-r"}
    for path in [*ROOT.glob("plugins/*/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml")]:
        names.add(tomllib.loads(path.read_text())["project"]["name"])
    return names


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
