"""The host's work of launched layers: what is measured is what serves, and starts what Triton's own launch would."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


def run(*options: str) -> str:
    command = [sys.executable, "-m", "bench.launch_cost", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tokens", ["40", "200"])
def test_every_launch_is_what_tritons_own_would_be(tokens: str) -> None:
    lines = run("--check", "--tokens", tokens).splitlines()
    assert len(lines) == 6
    for line in lines:
        assert re.search(r": [1-9]\d+ launches are as Triton's own", line), line


def test_no_launch_of_a_prompt_goes_through_tritons_look_up() -> None:
    lines = run("--rounds", "1").splitlines()
    assert sum("us a layer" in line for line in lines) == 6
    for line in lines[::2]:
        launches, jit = re.findall(r"launches ([\d.]+), jit ([\d.]+)", line)[0]
        assert float(launches) >= 5, line
        assert float(jit) == 0, line
