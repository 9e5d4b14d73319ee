"""Environments of public clients that do not fit beside the tests' own packages: each is made once, in a cache folder.

A client's script in `tests/e2e/clients` runs in its environment against a running server and prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "clients"
# Name -> what pip installs. Tested versions: what is new upstream is looked at when these are raised.
CLIENTS: dict[str, tuple[str, ...]] = {
    "litellm": ("litellm==1.110.2",),
    "langchain": ("langchain-openai==1.7.4", "langchain-core==1.8.3"),
    "pydantic_ai": ("pydantic-ai-slim[openai]==2.68.0",),
    "instructor": ("instructor==1.17.0",),
}
INSTALL_TIMEOUT_S = 280


class NoEnvironmentError(Exception):
    """An environment could not be made; the message says why."""


def cache_folder() -> Path:
    """CORE_CLIENTS_CACHE, or a folder of the user's cache."""
    given = os.environ.get("CORE_CLIENTS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "core-test-clients"


def interpreter(client: str) -> Path:
    """The Python of the client's environment, which is made if it is not there. Raises NoEnvironmentError."""
    wanted = sorted(CLIENTS[client])
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{client}-{digest}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)  # a half-made one
        try:
            venv.create(folder, with_pip=True)
            done = subprocess.run(
                [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
                capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise NoEnvironmentError(f"no environment for {client}: {error}") from error
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            raise NoEnvironmentError(f"no environment for {client}: {reason[-1][-300:]}")
        complete.write_text("\n".join(wanted))
    return python


def run_client(client: str, url: str) -> dict[str, Any]:
    """What the client's script found at the server. Raises NoEnvironmentError; AssertionError with the script's output
    if it fails."""
    python = interpreter(client)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CORE_", "PYTHON"))}
    done = subprocess.run(
        [str(python), str(SCRIPTS / f"{client}_client.py"), url],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{client}\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
