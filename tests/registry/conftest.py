"""Installed distributions without pip: dist-info folders and packages written to a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fakes import MakeDist, write_checkpoint


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that imports like site-packages; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def make_dist(site: Path) -> MakeDist:
    """make_dist(name, entry_points={group: {name: target}}, manifest=text or None, code=text, version="1.0")."""

    def make(
        name: str,
        entry_points: dict[str, dict[str, str]],
        manifest: str | None,
        code: str = "",
        version: str = "1.0",
    ) -> Path:
        package = site / name.replace("-", "_")
        package.mkdir()
        (package / "__init__.py").write_text(code)
        if manifest is not None:
            (package / "core_plugin.toml").write_text(manifest)
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, points in entry_points.items():
            lines.append(f"[{group}]")
            lines += [f"{key} = {target}" for key, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        return package

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint."""
    return write_checkpoint(tmp_path / "ckpt")
