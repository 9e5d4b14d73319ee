"""A package to be checked before release: a source folder or a wheel, laid out so that discovery can read it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.interfaces.errors import ConfigError
from core.registry.health.findings import Finding
from core.registry.manifest import MANIFEST_NAME

_BUILD_TIMEOUT_S = 300
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "venv", "dist", "build", "*.egg-info", "__pycache__", ".*_cache")
_INCLUDES_DATA = ("hatchling", "flit_core", "pdm", "poetry", "uv_build", "maturin", "scikit_build_core")


@dataclass(slots=True)
class Package:
    """paths: folders that import and scan like site-packages (metadata in the first). source: the folder that was
    given, None for a wheel. built: whether what is checked is a wheel. findings: of the opening and building."""

    distribution: str
    version: str
    paths: list[str]
    source: Path | None
    built: bool
    requires: tuple[str, ...] = ()
    requires_python: str = ""
    has_readme: bool = False
    entry_points: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def modules(self) -> tuple[str, ...]:
        """Top-level packages that entry points of core's groups name."""
        tops = {target.split(":")[0].split(".")[0].strip() for t in self.entry_points.values() for target in t.values()}
        return tuple(sorted(tops))

    def folder_of(self, module: str) -> Path | None:
        """Where a top-level package lies."""
        found = (Path(path) / module for path in self.paths)
        return next((folder for folder in found if folder.is_dir()), None)

    def shown(self, path: Path) -> str:
        """A file's name for people: relative to what was given."""
        for base in (*self.paths, *((str(self.source),) if self.source is not None else ())):
            if path.is_relative_to(base):
                return str(path.relative_to(base))
        return str(path)


@contextmanager
def open_package(path: Path) -> Iterator[Package]:
    """The package at `path`, for as long as the block runs. Raises ConfigError if it is neither a folder with a
    pyproject.toml nor a wheel."""
    with TemporaryDirectory(prefix="core-validate-") as scratch:
        if path.suffix == ".whl" and path.is_file():
            yield _unpacked(path, Path(scratch), None)
        elif (path / "pyproject.toml").is_file():
            yield _of_folder(path.resolve(), Path(scratch))
        else:
            raise ConfigError(
                f"{path} is neither a wheel nor a folder with a pyproject.toml",
                field="path",
                value=str(path),
                hint="give the folder of the package's sources, or the .whl file that will be released",
            )


def _of_folder(folder: Path, scratch: Path) -> Package:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{folder / 'pyproject.toml'} is not valid TOML: {exc}", field="path") from exc
    backend = str(project.get("build-system", {}).get("build-backend", "setuptools.build_meta"))
    tool = backend.split(".")[0].split(":")[0]
    why_not = _cannot_build(tool)
    if not why_not:
        wheel, output = _build(folder, scratch)
        if wheel is not None:
            return _unpacked(wheel, scratch, folder)
        why_not = "the build failed"
        finding = Finding(
            "error", "build", folder.name, "pyproject.toml: no wheel can be built", output,
            "mend what the build backend complains about; `python -m build --wheel` shows all of it",
        )  # fmt: skip
    else:
        finding = Finding(
            "warning", "build", folder.name, "not built", f"{why_not}; the build configuration was looked at instead",
            f"pip install build {tool}, and validate again, or validate the wheel",
        )  # fmt: skip
    package = _from_sources(folder, project, scratch)
    package.findings += [finding, *_configuration(folder, project, tool, package)]
    return package


def _cannot_build(tool: str) -> str:
    for module in ("build", tool):
        if importlib.util.find_spec(module) is None:
            return f"{module!r} is not installed"
    return ""


def _build(folder: Path, scratch: Path) -> tuple[Path | None, str]:
    """(wheel, "") or (None, the end of what the build wrote). Builds a copy, so that nothing is left behind."""
    copy, out = scratch / "source", scratch / "wheel"
    shutil.copytree(folder, copy, ignore=_LEFT_OUT, symlinks=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    try:
        done = subprocess.run(
            [*command, "--outdir", str(out), str(copy)],
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"it took longer than {_BUILD_TIMEOUT_S} s"
    wheel = next(iter(sorted(out.glob("*.whl"))), None)
    return wheel, "" if wheel is not None else (done.stdout + done.stderr).strip()[-800:].replace(str(copy), ".")


def _unpacked(wheel: Path, scratch: Path, source: Path | None) -> Package:
    site = scratch / "site"
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    except (zipfile.BadZipFile, OSError) as exc:
        raise ConfigError(f"{wheel} is no wheel: {exc}", field="path", hint="build it again") from exc
    found = next(iter(importlib.metadata.distributions(path=[str(site)])), None)
    if found is None:
        raise ConfigError(f"{wheel} holds no metadata (*.dist-info)", field="path", hint="build it again")
    metadata: Any = found.metadata
    body = metadata.get_payload() if hasattr(metadata, "get_payload") else ""
    return Package(
        distribution=metadata.get("Name") or wheel.name.split("-")[0],
        version=metadata.get("Version") or "0",
        paths=[str(site)],
        source=source,
        built=True,
        requires=tuple(found.requires or ()),
        requires_python=metadata.get("Requires-Python") or "",
        has_readme=bool(str(body or metadata.get("Description") or "").strip()),
        entry_points=_core_groups({(e.group, e.name): e.value for e in found.entry_points}),
    )


def _from_sources(folder: Path, project: Mapping[str, Any], scratch: Path) -> Package:
    """What metadata would say, put where discovery looks, beside the sources as they lie."""
    table = project.get("project", {})
    name, version = str(table.get("name", folder.name)), str(table.get("version", "0"))
    points = {
        (group, point): str(target)
        for group, entries in table.get("entry-points", {}).items()
        for point, target in entries.items()
    }
    info = scratch / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{group}]\n{point} = {target}\n" for (group, point), target in points.items()]
    (info / "entry_points.txt").write_text("".join(lines), encoding="utf-8")
    root = folder / "src" if (folder / "src").is_dir() else folder
    return Package(
        distribution=name,
        version=version,
        paths=[str(scratch / "site"), str(root)],
        source=folder,
        built=False,
        requires=tuple(map(str, table.get("dependencies", ()))),
        requires_python=str(table.get("requires-python", "")),
        has_readme="readme" in table,
        entry_points=_core_groups(points),
    )


def _configuration(folder: Path, project: Mapping[str, Any], tool: str, package: Package) -> Iterator[Finding]:
    """Whether the manifest would get into the wheel, as far as that can be told without building it."""
    folders = [package.folder_of(module) for module in package.modules]
    if not any(found is not None and (found / MANIFEST_NAME).exists() for found in folders) or tool in _INCLUDES_DATA:
        return
    data = project.get("tool", {}).get("setuptools", {}).get("package-data", {})
    patterns = {str(pattern) for entries in data.values() for pattern in entries}
    template = folder / "MANIFEST.in"
    if not patterns & {MANIFEST_NAME, "*.toml", "*", "**/*"} and not (
        template.exists() and (MANIFEST_NAME in template.read_text() or "*.toml" in template.read_text())
    ):
        yield Finding(
            "error", "manifest", package.distribution, "pyproject.toml: the manifest may not get into the wheel",
            f"nothing tells {tool} to include {MANIFEST_NAME}, which is no Python file",
            f'add [tool.setuptools.package-data] with "*" = ["{MANIFEST_NAME}"]',
        )  # fmt: skip


def _core_groups(points: Mapping[tuple[str, str], str]) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for (group, name), target in points.items():
        if group.startswith("core."):
            groups.setdefault(group, {})[name] = target
    return groups
