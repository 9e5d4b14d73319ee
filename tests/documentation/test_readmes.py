"""Commands in the READMEs of plugins and examples, which the site shows too: they and the options named exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from core.cli.commands import COMMANDS
from core.cli.group import LazyGroup

from .blocks import ROOT

READMES = sorted(
    [*ROOT.glob("plugins/*/*/README.md"), *ROOT.glob("examples/*README.md"), *ROOT.glob("examples/*/README.md")]
)
COMMAND = re.compile(r"^(?:    |\$ )?((?:core|pip install) [^#\n`]+)", re.MULTILINE)


def lines() -> list[tuple[Path, str]]:
    return [(page, match[1].strip()) for page in READMES for match in COMMAND.finditer(page.read_text())]


def provided(kind: str) -> set[str]:
    """Names that the packages of this repository register for a kind."""
    found: set[str] = set()
    for path in [*ROOT.glob("plugins/*/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml")]:
        found |= set(tomllib.loads(path.read_text())["project"].get("entry-points", {}).get(f"core.{kind}", {}))
    return found


def test_there_is_something_to_check() -> None:
    assert len(READMES) > 10
    assert len(lines()) > 15


@pytest.mark.parametrize(("page", "line"), lines(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_and_their_options_exist(page: Path, line: str) -> None:
    where = f"{page.relative_to(ROOT)}: {line}"
    words = shlex.split(line)
    if words[0] == "pip":
        projects = {
            ROOT / "pyproject.toml",
            *ROOT.glob("plugins/*/*/pyproject.toml"),
            *ROOT.glob("examples/*/pyproject.toml"),
        }
        names = {tomllib.loads(path.read_text())["project"]["name"] for path in projects}
        for name in (word.partition("[")[0] for word in words[2:] if not word.startswith("-")):
            known = name in names or (ROOT / name).is_dir() or (page.parent / name).is_dir() or name == "."
            assert known, f"{where}: {name} is no distribution of this repository"
        return
    command: click.Command = LazyGroup(COMMANDS, name="core")
    rest = words[1:]
    while isinstance(command, click.Group):
        if rest[0] in provided("commands"):
            return
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"{where}: there is no command {rest[0]!r}"
        command, rest = found, rest[1:]
    try:
        command.make_context(command.name or "", rest)
    except click.UsageError as error:
        raise AssertionError(f"{where}: {error.format_message()}") from error
    except click.exceptions.Exit:  # --help
        pass
