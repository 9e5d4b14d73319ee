"""`[plugin.capabilities]`: typed before import, wrong forms refused, unknown keys only warned about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import MakeDist, record

from core.interfaces.capabilities import StatedAttention, StatedQuant, capability_fields, read_capabilities
from core.interfaces.errors import PluginLoadError
from core.interfaces.kinds import KINDS
from core.registry import Catalog

ATTENTION = {"core.attention": {"fast": "plugin_a:Backend"}}


def manifest(capabilities: str, kind: str = "attention", api: str = "[1, 1]") -> str:
    return (
        f'schema = 1\n[[plugin]]\nkind = "{kind}"\nname = "fast"\napi = {api}\n[plugin.capabilities]\n{capabilities}\n'
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_states_priority_and_hardware(kind: Any) -> None:
    forms = capability_fields(kind.capabilities)
    assert forms["priority"] == "a whole number"
    assert forms["hardware"].startswith("a list of texts")


def test_selection_reads_typed_values() -> None:
    read = read_capabilities(StatedAttention, {"priority": 3, "page_sizes": [16, 32], "softcap": True, "x_mine": {}})
    assert read.stated == StatedAttention(priority=3, page_sizes=(16, 32), softcap=True)
    assert (read.problems, read.warnings) == ((), ())
    assert read_capabilities(StatedQuant, {"formats": ["q4"]}).stated == StatedQuant(formats=("q4",))


@pytest.mark.parametrize(
    ("line", "field", "value", "allowed"),
    [
        ('softcap = "yes"', "softcap", "'yes'", "true or false"),
        ("priority = true", "priority", "True", "a whole number"),
        ('page_sizes = ["16"]', "page_sizes", "['16']", "a list of whole numbers, e.g. [16, 32]"),
        ('hardware = "cpu"', "hardware", "'cpu'", 'a list of texts, e.g. ["name"]'),
    ],
)
def test_wrong_form_makes_it_unavailable_before_import(
    make_dist: MakeDist, site: Path, line: str, field: str, value: str, allowed: str
) -> None:
    make_dist("plugin-a", ATTENTION, manifest(line), "raise RuntimeError('imported')")
    catalog = Catalog.scan(paths=[str(site)])
    found = catalog.lookup("attention", "fast")
    assert found.state == "unavailable"
    assert f"capabilities.{field} is {value}; it must be {allowed}" in found.reason
    with pytest.raises(PluginLoadError, match=field):
        catalog.load("attention", "fast")
    assert "plugin_a" not in sys.modules


def test_unknown_key_warns_with_a_close_match(make_dist: MakeDist, site: Path) -> None:
    text = 'softcaps = true\nflux = 1\nx_note = "mine"\nstate_kinds = ["full", "sliding"]'
    make_dist("plugin-a", ATTENTION, manifest(text))
    found = Catalog.scan(paths=[str(site)]).record("attention", "fast")
    assert found.state == "available"
    softcaps, flux, kind = found.warnings
    assert "capabilities.softcaps" in softcaps
    assert "did you mean 'softcap'?" in softcaps
    assert "capabilities.flux" in flux
    assert "begin with x_" in flux
    assert "'sliding'" in kind


def test_manifest_for_another_version_is_not_judged_by_this_cores_schema(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", ATTENTION, manifest('softcap = "fancy"', api="[7, 7]"))
    found = Catalog.scan(paths=[str(site)]).lookup("attention", "fast")
    assert "needs a newer core" in found.reason
    assert "softcap" not in found.reason


def test_records_made_by_hand_are_read_alike() -> None:
    assert record("attention", "fast", capabilities={"priority": 4}).priority == 4
    wrong = record("attention", "fast", capabilities={"priority": "high"})
    assert wrong.state == "unavailable"
    assert "'high'" in wrong.reason
