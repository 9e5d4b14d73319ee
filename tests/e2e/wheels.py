"""Wheels, and empty environments that they are installed into.

An environment has Python and what the running one has installed, except core, its plugins and whatever else is not from
a wheel; so nothing is downloaded, and what is found was installed by the test.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))


def build(sources: Sequence[Path], place: Path) -> None:
    """Wheels of source trees; their build backend runs in place of a front end, which would start three processes."""
    for source in sources:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{source}:\n{done.stdout}{done.stderr}"


def make_wheel(
    place: Path, name: str, files: Mapping[str, str], entry_points: str = "", *, version: str = "1.0"
) -> Path:
    """A wheel of given files (path in the wheel -> text), without a build."""
    stem = f"{name.replace('-', '_')}-{version}"
    contents = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: core\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": entry_points,
    }
    record = ""
    path = place / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in contents.items():
            archive.writestr(inner, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{inner},sha256={digest},{len(text.encode())}\n"
        archive.writestr(f"{stem}.dist-info/RECORD", f"{record}{stem}.dist-info/RECORD,,\n")
    return path


def make_plugin(
    place: Path, name: str, *, kind: str, entry: str, code: str, target: str = "Plugin", api: tuple[int, int] = (1, 1)
) -> Path:
    """A wheel with one plugin whose package is `code`. Importing it writes a file "imported-PACKAGE" to the folder
    that the variable IMPORTS names."""
    package = name.replace("-", "_")
    note = f"import os, pathlib\npathlib.Path(os.environ['IMPORTS'], 'imported-{package}').touch()\n"
    manifest = (
        f'schema = 1\n[[plugin]]\nkind = "{kind}"\nname = "{entry}"\napi = [{api[0]}, {api[1]}]\nsummary = "{name}"\n'
    )
    files = {f"{package}/__init__.py": note + code, f"{package}/core_plugin.toml": manifest}
    return make_wheel(place, name, files, f"[core.{kind}]\n{entry} = {package}:{target}\n")


def link_dependencies(place: Path) -> Path:
    """A folder of links to all that is installed here from wheels, core and its plugins left out."""
    place.mkdir()
    folders = [Path(folder) for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    ours = set()
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"])).lower()
        points = distribution.read_text("entry_points.txt") or ""
        if name == "core" or "[core." in points:
            ours |= {str(path).split("/", 1)[0] for path in distribution.files or ()}
            ours.add(f"{name.replace('-', '_')}-{distribution.version}.dist-info")
    for folder in folders:
        for path in folder.iterdir():
            skipped = path.suffix == ".pth" or path.name in ours or path.name.startswith("__editable__")
            if not skipped and not (place / path.name).exists():
                (place / path.name).symlink_to(path)
    return place


class Environment:
    """A fresh virtual environment with links to the dependencies, and wheels on demand."""

    def __init__(self, folder: Path, wheels: Path, dependencies: Path) -> None:
        self.folder, self.wheels = folder, wheels
        self.python = folder / "bin" / "python"
        self.imports = folder / "imports"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.site = next(folder.glob("lib/python*/site-packages"))
        (self.site / "dependencies.pth").write_text(f"{dependencies}\n")
        self.imports.mkdir()

    def install(self, *names: str | Path) -> Environment:
        """Distributions by name, from the built wheels, or wheel files."""
        self._pip("install", "--no-deps", "--no-index", "--no-compile", "--find-links", self.wheels, *names)
        return self

    def uninstall(self, *names: str) -> None:
        self._pip("uninstall", "-y", *names)

    def _pip(self, *words: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, "-q", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.variables())
        assert done.returncode == 0, done.stderr

    def variables(self) -> dict[str, str]:
        """Nothing of the tests' own environment that Python or core would read."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CORE_", "PYTHON", "PIP_"))}
        return {**kept, "IMPORTS": str(self.imports), "OMP_NUM_THREADS": "1"}

    def run(self, *command: str | Path, timeout_s: float = 180.0, cwd: Path | None = None) -> Any:
        return subprocess.run(
            [self.python, *command], capture_output=True, text=True, timeout=timeout_s, check=False,
            env=self.variables(), cwd=cwd or self.folder,
        )  # fmt: skip

    def core(self, *words: str | Path) -> Any:
        """`core WORDS`, through the installed script."""
        return self.run(self.folder / "bin" / "core", *words)

    def list_plugins(self) -> list[dict[str, Any]]:
        done = self.core("plugins", "list", "--json")
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, Any]] = json.loads(done.stdout)["plugins"]
        return listed

    def imported(self) -> set[str]:
        """Packages of `make_plugin` that have been imported since the environment was made."""
        return {path.name.removeprefix("imported-") for path in self.imports.iterdir()}
