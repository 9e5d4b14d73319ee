"""core_plugin.toml: what is accepted, and that errors name file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

import core
from core.interfaces.kinds import KINDS
from core.registry.manifest import ManifestError, read_manifest

GOOD = """
schema = 1
[[plugin]]
kind = "attention"
name = "fast"
api = [1, 2]
summary = "quick"
stability = "beta"
config = "pkg.config:Options"
[plugin.capabilities]
priority = 3
[plugin.requires]
packages = ["numpy>=1"]
hardware = ["cpu"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "core_plugin.toml"
    path.write_text(text)
    return path


def test_reads_every_field(tmp_path: Path) -> None:
    (entry,) = read_manifest(write(tmp_path, GOOD)).plugin
    assert (entry.kind, entry.name, entry.api, entry.stability) == ("attention", "fast", (1, 2), "beta")
    assert entry.capabilities == {"priority": 3}
    assert entry.requires.packages == ("numpy>=1",)
    assert entry.requires.hardware == ("cpu",)
    assert entry.config == "pkg.config:Options"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("schema = 1", "schema = 2"), "schema"),
        (("api = [1, 2]", "api = [2, 1]"), "oldest <= newest"),
        (("api = [1, 2]", "api = [0, 1]"), "oldest <= newest"),
        (("api = [1, 2]", 'api = "1"'), "api"),
        (("api = [1, 2]", ""), "api"),
        (('name = "fast"', ""), "name"),
        (('stability = "beta"', 'stability = "so-so"'), "stability"),
        (('summary = "quick"', 'sumary = "quick"'), "sumary"),
        (("priority = 3", "priority = "), "TOML"),
    ],
)
def test_mistakes_name_file_and_field(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_missing_file_and_double_entry(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="missing"):
        read_manifest(tmp_path / "core_plugin.toml")
    with pytest.raises(ManifestError, match="listed twice"):
        read_manifest(write(tmp_path, GOOD + GOOD.replace("schema = 1", "")))


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "core_plugin.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(path)


def test_core_own_manifest_is_valid() -> None:
    manifest = read_manifest(Path(core.__file__).parent / "core_plugin.toml")
    assert manifest.plugin
    assert all(entry.kind in KINDS for entry in manifest.plugin)
