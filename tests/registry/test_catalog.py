"""Discovery: entry points joined with manifests, errors only for what is used."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from registry_fakes import MakeDist

from core.interfaces.errors import PluginApiError, PluginClash, PluginError, PluginLoadError, PluginNotFound
from core.interfaces.kinds import KINDS
from core.registry import Catalog, PluginRecord

RUNNER = """
from core.interfaces.moe import MoeRunner
class Runner(MoeRunner):
    def run(self, x, gate_up, down, topk_ids, topk_weights):
        return x
"""


def entry(name: str = "fast", kind: str = "moe", api: str = "[1, 1]", extra: str = "") -> str:
    return f'[[plugin]]\nkind = "{kind}"\nname = "{name}"\napi = {api}\nsummary = "s"\n{extra}\n'


def manifest(*entries: str) -> str:
    return "schema = 1\n" + "".join(entries)


MOE = {"core.moe": {"fast": "plugin_a:Runner"}}


def test_scan_joins_both_sources_and_imports_nothing(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", MOE, manifest(entry(extra="[plugin.capabilities]\npriority = 4")), "raise SystemExit(3)")
    (record,) = Catalog.scan(paths=[str(site)]).records
    assert (record.kind, record.name, record.distribution, record.version) == ("moe", "fast", "plugin-a", "1.0")
    assert (record.state, record.reason, record.priority, record.summary) == ("available", "", 4, "s")
    assert record.target == "plugin_a:Runner"
    assert "plugin_a" not in sys.modules


def test_scan_of_the_environment_finds_the_core_itself() -> None:
    found = {(r.kind, r.name): r for r in Catalog.scan().records if r.distribution == "core"}
    assert found["hardware", "cpu"].state == "available"
    assert found["prefix_cache", "radix"].capabilities["state_kinds"]


def test_groups_restrict_the_scan(make_dist: MakeDist, site: Path) -> None:
    points = {**MOE, "core.commands": {"extra": "plugin_a:app"}}
    make_dist("plugin-a", points, manifest(entry(), entry("extra", "commands")))
    names = [r.name for r in Catalog.scan(paths=[str(site)], groups=["core.commands"]).records]
    assert names == ["extra"]


def test_load_returns_the_class(make_dist: MakeDist) -> None:
    make_dist("plugin-a", MOE, manifest(entry()), RUNNER)
    catalog = Catalog.scan()
    runner = catalog.load("moe", "fast")
    assert runner.__name__ == "Runner"
    assert catalog.load("moe", "plugin-a:fast") is runner
    assert catalog.load("moe", "Plugin_A:fast") is runner


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "core_plugin.toml is missing"),
        ("schema = ", "not valid TOML"),
        (manifest(entry(api='"x"')), "api"),
        (manifest(entry("other")), "no entry for moe 'fast'"),
    ],
)
def test_bad_manifest_makes_the_record_unavailable(
    make_dist: MakeDist, site: Path, text: str | None, reason: str
) -> None:
    make_dist("plugin-a", MOE, text, RUNNER)
    catalog = Catalog.scan(paths=[str(site)])
    record = catalog.lookup("moe", "fast")
    assert record.state == "unavailable"
    assert reason in record.reason
    with pytest.raises(PluginLoadError, match=r"plugin-a 1\.0") as caught:
        catalog.load("moe", "fast")
    assert reason in str(caught.value)
    assert "plugin_a" not in sys.modules


def test_manifest_entry_without_entry_point(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", MOE, manifest(entry(), entry("forgotten")))
    catalog = Catalog.scan(paths=[str(site)])
    assert catalog.lookup("moe", "fast").state == "available"
    assert "no entry point core.moe:forgotten" in catalog.lookup("moe", "forgotten").reason


def test_manifest_entry_of_unknown_kind_is_reported(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", MOE, manifest(entry(), entry("x", kind="teleport")))
    reasons = [r.reason for r in Catalog.scan(paths=[str(site)]).records if r.kind == "teleport"]
    assert reasons == ["kind 'teleport' is unknown to this core"]


def test_package_that_is_not_there(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", {"core.moe": {"fast": "plugin_gone:Runner"}}, manifest(entry()))
    assert "'plugin_gone' is not installed" in Catalog.scan(paths=[str(site)]).lookup("moe", "fast").reason


def test_single_module(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", {"core.moe": {"fast": "lonely:Runner"}}, None)
    (site / "lonely.py").write_text(RUNNER)
    assert "single module" in Catalog.scan(paths=[str(site)]).lookup("moe", "fast").reason


def test_import_error_selected_and_unselected(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", MOE, manifest(entry()), "raise RuntimeError('no driver')")
    make_dist("plugin-b", {"core.moe": {"good": "plugin_b:Runner"}}, manifest(entry("good")), RUNNER)
    catalog = Catalog.scan(paths=[str(site)])
    assert catalog.load("moe", "good").__name__ == "Runner"  # the broken neighbour is of no concern
    with pytest.raises(PluginLoadError, match=r"plugin-a 1\.0.*RuntimeError: no driver") as caught:
        catalog.load("moe", "fast")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.hint
    assert catalog.lookup("moe", "fast").state == "failed"
    with pytest.raises(PluginLoadError, match="no driver"):  # the reason is kept
        catalog.record("moe", "fast")


def test_plugin_that_exits_at_import(make_dist: MakeDist) -> None:
    make_dist("plugin-a", MOE, manifest(entry()), "raise SystemExit(3)")
    with pytest.raises(PluginLoadError, match="SystemExit"):
        Catalog.scan().load("moe", "fast")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("Runner = 3", "no subclass of core.interfaces.moe.MoeRunner"),
        ("class Runner: pass", "no subclass"),
        ("from core.interfaces.moe import MoeRunner\nclass Runner(MoeRunner): pass", "lacks run"),
        ("", "AttributeError"),
    ],
)
def test_what_is_loaded_must_implement_the_interface(make_dist: MakeDist, code: str, reason: str) -> None:
    make_dist("plugin-a", MOE, manifest(entry()), code)
    with pytest.raises(PluginLoadError, match=reason):
        Catalog.scan().load("moe", "fast")


def test_clash_only_matters_when_the_name_is_used(make_dist: MakeDist, site: Path) -> None:
    for letter in "ab":
        points = {"core.moe": {"fast": f"plugin_{letter}:Runner", f"own_{letter}": f"plugin_{letter}:Runner"}}
        make_dist(f"plugin-{letter}", points, manifest(entry(), entry(f"own_{letter}")), RUNNER)
    catalog = Catalog.scan(paths=[str(site)])
    assert [r.full_name for r in catalog.records if r.name == "fast"] == ["plugin-a:fast", "plugin-b:fast"]
    assert catalog.load("moe", "own_a").__module__ == "plugin_a"
    with pytest.raises(PluginClash) as caught:
        catalog.load("moe", "fast")
    assert "plugin-a 1.0" in str(caught.value)
    assert "plugin-b 1.0" in str(caught.value)
    assert "plugin-b:fast" in (caught.value.hint or "")
    assert catalog.load("moe", "plugin-b:fast").__module__ == "plugin_b"


@pytest.mark.parametrize(
    ("api", "word", "hint"),
    [("[1, 2]", "too old", "--upgrade plugin-a"), ("[5, 9]", "needs a newer core", "upgrade core")],
)
def test_api_range_is_checked_before_import(make_dist: MakeDist, site: Path, api: str, word: str, hint: str) -> None:
    make_dist("plugin-a", MOE, manifest(entry(api=api)), "raise RuntimeError('imported')")
    kinds = {**KINDS, "moe": replace(KINDS["moe"], api=4, oldest_api=3)}
    catalog = Catalog.scan(paths=[str(site)], kinds=kinds)
    record = catalog.lookup("moe", "fast")
    assert record.state == "unavailable"
    assert word in record.reason
    with pytest.raises(PluginApiError) as caught:
        catalog.load("moe", "fast")
    for part in ("plugin-a", api.strip("[]").replace(", ", " to "), "3 to 4", word):
        assert part in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("api", ["[1, 3]", "[3, 3]", "[4, 9]", "[1, 9]"])
def test_api_ranges_that_meet(make_dist: MakeDist, site: Path, api: str) -> None:
    make_dist("plugin-a", MOE, manifest(entry(api=api)))
    kinds = {**KINDS, "moe": replace(KINDS["moe"], api=4, oldest_api=3)}
    record = Catalog.scan(paths=[str(site)], kinds=kinds).record("moe", "fast")
    assert record.state == "available"
    # One version of warning before a plugin stops working.
    assert ("will drop 3" in "".join(record.warnings)) == (api in ("[1, 3]", "[3, 3]"))


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("surely-not-installed>=2", "surely-not-installed>=2, which is not installed"),
        ("msgspec<0.0.1", "is installed"),
        ("not a requirement", "no valid requirement"),
    ],
)
def test_unmet_requirements_are_found_before_import(
    make_dist: MakeDist, site: Path, requirement: str, reason: str
) -> None:
    text = manifest(entry(extra=f'[plugin.requires]\npackages = ["{requirement}"]'))
    make_dist("plugin-a", MOE, text, "raise RuntimeError('imported')")
    catalog = Catalog.scan(paths=[str(site)])
    assert reason in catalog.lookup("moe", "fast").reason
    with pytest.raises(PluginLoadError, match="plugin-a"):
        catalog.load("moe", "fast")


def test_met_requirements_and_markers(make_dist: MakeDist, site: Path) -> None:
    packages = """["msgspec>=0.1", "nowhere>=1; sys_platform == 'beos'"]"""
    make_dist("plugin-a", MOE, manifest(entry(extra=f"[plugin.requires]\npackages = {packages}")))
    assert Catalog.scan(paths=[str(site)]).record("moe", "fast").state == "available"


def test_not_found_lists_what_is_installed() -> None:
    catalog = Catalog.from_records([PluginRecord("moe", "fast", "plugin-a"), PluginRecord("moe", "slow", "plugin-a")])
    with pytest.raises(PluginNotFound) as caught:
        catalog.record("moe", "fats")
    assert "did you mean 'fast'?" in str(caught.value)
    assert "installed: fast, slow" in str(caught.value)
    with pytest.raises(PluginNotFound, match="kind 'teleport'"):
        catalog.record("teleport", "x")
    with pytest.raises(PluginNotFound, match="no ops plugin is installed"):
        catalog.record("ops", "x")


def test_from_records_carries_objects() -> None:
    thing = object()
    catalog = Catalog.from_records([PluginRecord("moe", "fast", "plugin-a", loaded=thing)])
    assert catalog.load("moe", "fast") is thing
    assert not catalog.clashes(catalog.record("moe", "fast"))


def test_every_plugin_error_is_a_plugin_error(make_dist: MakeDist) -> None:
    make_dist("plugin-a", MOE, "schema = 7")
    with pytest.raises(PluginError):
        Catalog.scan().load("moe", "fast")


def test_stale_copy_further_down_the_path_is_ignored(make_dist: MakeDist, site: Path, tmp_path: Path) -> None:
    make_dist("plugin-a", MOE, manifest(entry()))
    old = tmp_path / "old" / "plugin_a-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: Plugin_A\nVersion: 0.1\n")
    (old / "entry_points.txt").write_text("[core.moe]\nfast = plugin_a:Runner\n")
    records = Catalog.scan(paths=[str(site), str(old.parent)]).records
    assert [r.version for r in records] == ["1.0"]


def test_distribution_without_a_name_is_skipped(site: Path) -> None:
    info = site / "broken-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[core.moe]\nfast = broken:Runner\n")
    assert Catalog.scan(paths=[str(site)]).records == ()
