from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from core.engine.spinning import spin_briefly


def test_the_operators_choice_stands() -> None:
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}):
        environment = dict(own)
        spin_briefly(environment)
        assert environment == own


@pytest.mark.parametrize("door", ["from core import LLM", "import core.cli.main; core.cli.main.main(['version'])"])
def test_set_before_torch_is_loaded(door: str) -> None:
    code = (
        "import builtins, json, os, sys\n"
        "real, seen = builtins.__import__, []\n"
        "def look(name, *rest):\n"
        "    if name == 'torch' and 'torch' not in sys.modules: seen.append(os.environ.get('GOMP_SPINCOUNT'))\n"
        "    return real(name, *rest)\n"
        f"builtins.__import__ = look\n{door}\nimport torch\nprint('SEEN', json.dumps(seen[0]))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout.rsplit("SEEN ", 1)[1]) is not None
