"""What the switch guides call ours exists: flags, routes, request fields, metrics, parsers, backends."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from core.config.fields import setting_fields
from core.metrics.aliases import ALIASES
from core.server.fields import REFUSED
from core.server.schemas import ChatFields, CompletionFields, GenerateBody

from .blocks import ROOT
from .test_routes import served

PEERS = ("vllm", "sglang")
CODE = re.compile(r"`([^`]+)`")


def rows(peer: str, section: str) -> list[list[str]]:
    """Cells of the tables of one section, without their heads."""
    page = (ROOT / "docs" / "guide" / f"switch-from-{peer}.md").read_text()
    body = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found, lines = [], body.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        head = line.startswith("| ") and not above.startswith("|")
        if line.startswith("| ") and not head:
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert len(found) > 2, (peer, section)
    return found


def projects() -> list[dict[str, Any]]:
    return [
        tomllib.loads(path.read_text())["project"]
        for path in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]
    ]


def test_the_tables_are_generated() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/switch-tables", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("peer", PEERS)
def test_flags_exist(peer: str) -> None:
    names = {name for field in setting_fields() for name in (field.flag, *(f"--{alias}" for alias in field.aliases))}
    for theirs, ours, note in rows(peer, "Flags"):
        named = {*CODE.findall(ours), *(word for word in CODE.findall(note) if word.startswith("--"))}
        assert named <= names, (theirs, ours)
        if note.startswith("taken"):
            assert CODE.findall(theirs)[0] in names
        if not named:
            assert note, f"{theirs}: say why there is none"


@pytest.mark.parametrize("peer", PEERS)
def test_routes_exist(peer: str) -> None:
    paths = {path for _, path in served()}
    for theirs, ours in rows(peer, "Routes"):
        if ours.startswith("–"):
            assert not paths & set(CODE.findall(theirs)), theirs
        else:
            named = {*(CODE.findall(theirs) if ours.startswith("the same") else ()), *CODE.findall(ours)}
            assert named <= paths, named - paths


@pytest.mark.parametrize("peer", PEERS)
def test_request_fields_exist_or_are_refused(peer: str) -> None:
    from core.frontend.parameters import PARAMETERS, Dialect

    known = {name for dialect in Dialect for parameter in PARAMETERS for name in parameter.spellings(dialect)}
    known |= {name for model in (ChatFields, CompletionFields, GenerateBody) for name in model.model_fields}
    for theirs, ours in rows(peer, "Request fields"):
        names = set(CODE.findall(theirs)) - {"sampling_params"} | {"temperature"}
        if ours.startswith("refused"):
            assert names - {"temperature"} <= REFUSED.keys(), names
        else:
            assert names <= known, names - known


@pytest.mark.parametrize("peer", PEERS)
def test_parsers_are_registered_by_the_distribution_named(peer: str) -> None:
    registered = {
        (name, project["name"])
        for project in projects()
        for kind in ("tool_parsers", "reasoning_parsers")
        for name in project.get("entry-points", {}).get(f"core.{kind}", {})
    }
    for theirs, distribution in rows(peer, "Parsers"):
        if theirs != "reasoning parser":
            assert (CODE.findall(theirs)[0], CODE.findall(distribution)[0]) in registered, theirs


@pytest.mark.parametrize("peer", PEERS)
def test_metrics_have_these_names(peer: str) -> None:
    known = {(alias.exposed, f"core_{alias.source}") for alias in ALIASES if alias.peer == peer}
    told = {(CODE.findall(theirs)[0], CODE.findall(ours)[0]) for theirs, ours in rows(peer, "Metrics")}
    assert told == known


@pytest.mark.parametrize("peer", PEERS)
def test_grammar_backends_are_distributions(peer: str) -> None:
    page = (ROOT / "docs" / "guide" / f"switch-from-{peer}.md").read_text()
    section = page.split("\n## Grammar backends\n")[1].split("\n## ")[0]
    names = {project["name"] for project in projects()}
    named = {word for word in CODE.findall(section) if word.startswith("plugin-")}
    assert named
    assert named <= names
