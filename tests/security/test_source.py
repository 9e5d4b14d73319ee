"""No data becomes code: no pickle, no eval, no unsafe YAML or weights, in core and its plugins."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in (ROOT / "core", *(ROOT / "plugins").glob("*/*/src")) for path in folder.rglob("*.py")
)
PICKLES = frozenset(
    {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
)
RUNS_CODE = frozenset({"eval", "exec", "compile", "__import__"})
# Why each of these is no danger.
ALLOWED: dict[str, str] = {
    "plugins/attention/triton/src/plugin_triton/launch.py": (
        "a function that starts a kernel: its text has numbers of arguments, whole numbers and None; all else is a name"
    ),
}


def findings(path: Path, text: str) -> list[str]:
    """What stands in the source that makes code of data."""
    found = []

    def tell(node: ast.AST, what: str) -> None:
        found.append(f"{path.name}:{getattr(node, 'lineno', 0)}: {what}")

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in PICKLES:
                    tell(node, f"import {name.name}")
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in PICKLES:
                tell(node, f"from {node.module}")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if called in RUNS_CODE or called in ("os.system", "os.popen"):
                tell(node, f"{called}()")
            safe = keywords.get("weights_only")
            if called == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
                tell(node, "torch.load without weights_only=True")
            if called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
                tell(node, called)
            shell = keywords.get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                tell(node, "a shell")
            if called in ("np.load", "numpy.load") and "allow_pickle" in keywords:
                tell(node, "numpy.load with allow_pickle")
    return found


def test_sources_are_found() -> None:
    assert len(SOURCES) > 200
    assert any("plugins" in path.parts for path in SOURCES)


def test_no_data_becomes_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {one}"
        for path in SOURCES
        if str(path.relative_to(ROOT)) not in ALLOWED
        for one in findings(path, path.read_text())
    ]
    assert not found


def test_what_is_allowed_is_still_there() -> None:
    assert all((ROOT / path).exists() and reason for path, reason in ALLOWED.items())


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from marshal import loads", "eval('1')", "exec(text)", "compile(a, b, 'exec')", "torch.load(f)",  # noqa: E501
        "torch.load(f, weights_only=False)", "yaml.load(f)", "os.system('x')", "subprocess.run(c, shell=True)",
        "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_search_finds(text: str) -> None:
    assert findings(Path("x.py"), text)


@pytest.mark.parametrize(
    "text",
    ["re.compile('a')", "model.eval()", "torch.load(f, weights_only=True)", "yaml.safe_load(f)", "backend.compile(s)"],
)
def test_the_search_lets_pass(text: str) -> None:
    assert not findings(Path("x.py"), text)
