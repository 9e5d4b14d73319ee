"""What validate sees in sources without running them, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.registry.health.source_rules import contract_classes, line_of_import, remarks_on


def remarks(tmp_path: Path, code: str) -> list[tuple[int, str, str]]:
    path = tmp_path / "m.py"
    path.write_text(code)
    return [(remark.line, remark.check, remark.what) for remark in remarks_on(path)]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import core.registry", "import of core.registry"),
        ("from core.engine.engine import Engine", "import of core.engine.engine"),
        ("from core import registry", "import of core.registry"),
        ("def f():\n    from core.llm import LLM", "import of core.llm"),
        ("from core.layers.linear import _hidden", "import of core.layers.linear._hidden"),
        ("import core.interfaces._secret", "import of core.interfaces._secret"),
        ("import pickle\npickle.load(f)", "call of pickle.load"),
        ("from pickle import loads as l\nl(b)", "call of pickle.loads"),
        ("import joblib\njoblib.load('x')", "call of joblib.load"),
        ("import torch\ntorch.load('x')", "torch.load without weights_only=True"),
        ("from torch import load\nload('x', weights_only=False)", "torch.load without weights_only=True"),
        ("import torch as t\nt.load('x')", "torch.load without weights_only=True"),
        ("f(trust_remote_code=True)", "trust_remote_code=True"),
        ("import requests\nX = requests.get('u')", "call of requests.get when the module is imported"),
        (
            "class A:\n    from urllib.request import urlopen\n    x = urlopen('u')",
            "call of urllib.request.urlopen when",
        ),
        ("import hub\ndef f(x=hub.snapshot_download('u')): ...", "call of hub.snapshot_download when"),
    ],
)
def test_found(tmp_path: Path, code: str, found: str) -> None:
    ((line, _, what),) = remarks(tmp_path, code)
    assert what.startswith(found)
    assert 1 <= line <= code.count("\n") + 1


@pytest.mark.parametrize(
    "code",
    [
        "import core\nfrom core.interfaces.attention import AttentionBackend\nimport core.layers.linear, core.ops",
        "from core import interfaces, layers",
        "from . import core\nfrom .core import registry\nimport corelib.registry",
        "import pickle\npickle.dumps(x)",
        "import torch\ntorch.load('x', weights_only=True)",
        "import json\njson.load(f)",
        "import requests\ndef f():\n    return requests.get('u')",
        "import requests\nif __name__ == '__main__':\n    requests.get('u')",
        "f(trust_remote_code=False)",
    ],
)
def test_not_found(tmp_path: Path, code: str) -> None:
    assert remarks(tmp_path, code) == []


def test_no_python(tmp_path: Path) -> None:
    ((line, check, _),) = remarks(tmp_path, "x = 1\ndef f(:\n")
    assert (line, check) == (2, "source")


def test_contract_classes(tmp_path: Path) -> None:
    path = tmp_path / "test_m.py"
    path.write_text(
        "from core.testing.contracts.attention import AttentionContract as AC\nimport core.testing.contracts.moe as m\n"
        "class TestA(AC): ...\nclass TestB(m.MoeContract): ...\nclass TestC: ...\n"
    )
    assert contract_classes(path) == {"AttentionContract", "MoeContract"}


def test_line_of_import(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("import os\n\nfrom torch import nn\n")
    assert line_of_import(path, "torch") == 3
    assert line_of_import(path, "jax") == 1
