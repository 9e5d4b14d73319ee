"""`core version`."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from core.cli.output import json_option, print_json

_SHOWN = ("torch", "transformers", "tokenizers", "safetensors", "pydantic", "msgspec")


def _version(as_json: bool) -> None:
    """Versions as installed, read from metadata; nothing is imported."""
    versions = {"core": metadata.version("core"), "python": platform.python_version()}
    for name in _SHOWN:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    if as_json:
        print_json(versions)
        return
    for name, version in versions.items():
        click.echo(f"{name} {version}")


command = click.Command(
    "version", callback=_version, params=[json_option()], help="Versions of core and of what it runs on."
)
