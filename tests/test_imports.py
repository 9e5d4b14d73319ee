"""What may be imported when: a light `import core`, a scan that runs no plugin, floors that need no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "pydantic", "rich", "typer", "zmq", "tokenizers")
REPORT = "import sys, json; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
NUM_DUMMIES = 50


def _joined(name: str, value: str) -> str:
    """A path variable keeps what the environment has."""
    return os.pathsep.join(filter(None, [value, os.environ.get(name, "")]))


def imported_by(code: str, **env: str) -> set[str]:
    """Top-level modules in sys.modules after `code` in a fresh process."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"],
        capture_output=True,
        text=True,
        env={**os.environ, **{name: _joined(name, value) for name, value in env.items()}},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.fixture
def fifty_dummies(tmp_path: Path) -> Path:
    """Fifty installed distributions, one plugin each; all raise when imported."""
    for i in range(NUM_DUMMIES):
        package = tmp_path / f"plugin_dummy{i}"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('a scan must not import me')")
        (package / "core_plugin.toml").write_text(
            f'schema = 1\n[[plugin]]\nkind = "attention"\nname = "dummy{i}"\napi = [1, 1]\n'
            '[plugin.requires]\npackages = ["numpy>=1"]\n'
        )
        info = tmp_path / f"plugin_dummy{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-dummy{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[core.attention]\ndummy{i} = plugin_dummy{i}:Backend\n")
    return tmp_path


def test_import_core_is_light() -> None:
    modules = imported_by("import core; core.__version__")
    assert not modules & {*HEAVY, "numpy", "msgspec", "click", "yaml"}
    assert not any(name.startswith("plugin_") for name in modules)


def test_help_is_light(fifty_dummies: Path) -> None:
    modules = imported_by("import core.cli.main as m; m.main(['--help'])", PYTHONPATH=str(fifty_dummies))
    # msgspec: a package with a command is installed here, and its help line is in its manifest.
    assert not modules & {*HEAVY, "numpy", "yaml"}
    assert not any(name.startswith("plugin_") for name in modules)


def test_scan_of_fifty_distributions_imports_none(fifty_dummies: Path) -> None:
    code = (
        "from core.registry import Catalog\n"
        "found = [r for r in Catalog.scan().records if r.name.startswith('dummy')]\n"
        f"assert len(found) == {NUM_DUMMIES}, len(found)\n"
        "assert all(r.state == 'available' for r in found), found[0].reason"
    )
    modules = imported_by(code, PYTHONPATH=str(fifty_dummies))
    assert not modules & {"torch", "transformers", "pydantic", "fastapi"}
    assert not any(name.startswith("plugin_") for name in modules)


def test_listing_fifty_distributions_imports_none(fifty_dummies: Path) -> None:
    code = "import core.cli.main as m; assert m.main(['plugins', 'list']) == 0"
    modules = imported_by(code, PYTHONPATH=str(fifty_dummies))
    assert not modules & {"torch", "pydantic"}
    assert not any(name.startswith("plugin_") for name in modules)


@pytest.mark.parametrize("package", ["scheduler", "memory", "registry", "config", "frontend", "interfaces"])
def test_floors_that_never_import_torch(package: str) -> None:
    import core

    folder = Path(core.__file__).parent
    names = sorted(
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in (folder / package).rglob("*.py")
    )
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    assert "torch" not in imported_by(code)
