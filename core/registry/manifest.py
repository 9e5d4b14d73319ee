"""`core_plugin.toml`: what a distribution's plugins are, readable without importing anything.

The file lies in the distribution's top-level import package:

    schema = 1

    [[plugin]]
    kind = "attention"
    name = "fast"
    api = [1, 2]                      # interface versions it works with, both ends included
    summary = "one line for people"
    stability = "beta"                # stable | beta | experimental
    config = "my_package.config:Options"   # optional pydantic model of its own settings
    [plugin.capabilities]             # by the schema of the kind (core.interfaces.capabilities)
    hardware = ["cpu"]
    priority = 10                     # higher goes first where core chooses
    [plugin.requires]
    packages = ["somelib>=2.1"]       # PEP 508, checked against what is installed
    hardware = ["cpu"]                # hardware plugins it can work with
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.interfaces.errors import PluginError

MANIFEST_NAME = "core_plugin.toml"


class ManifestError(PluginError):
    """A manifest cannot be read; the message names the file and the field."""


class Requires(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """packages: PEP 508 requirements. hardware: names of hardware plugins; empty means any."""

    packages: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()


class ManifestEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One plugin. api: (oldest, newest) interface version that it works with."""

    kind: str
    name: str
    api: tuple[int, int]
    summary: str = ""
    stability: Literal["stable", "beta", "experimental"] = "stable"
    capabilities: dict[str, Any] = {}
    requires: Requires = Requires()
    config: str | None = None

    def __post_init__(self) -> None:
        if self.api[0] > self.api[1] or self.api[0] < 1:
            raise ValueError(f"api is {list(self.api)}; it must be [oldest, newest] with 1 <= oldest <= newest")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: Literal[1]
    plugin: tuple[ManifestEntry, ...] = ()


def read_manifest(path: Path) -> Manifest:
    """Parse and check one file. Raises ManifestError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{MANIFEST_NAME} is missing") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ManifestError(f"{path}: cannot be read ({exc})") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ManifestError(f"{path}: not valid TOML: {exc}") from exc
    try:
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.ValidationError, ValueError) as exc:
        raise ManifestError(f"{path}: {exc}") from exc
    seen: set[tuple[str, str]] = set()
    for entry in manifest.plugin:
        if (entry.kind, entry.name) in seen:
            raise ManifestError(f"{path}: {entry.kind} {entry.name!r} is listed twice")
        seen.add((entry.kind, entry.name))
    return manifest
