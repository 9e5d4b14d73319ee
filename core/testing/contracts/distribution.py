"""DistributionContract: what must hold of a whole package of plugins, whatever their kinds.

class TestPackage(DistributionContract):
    package = "plugin_mine"
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from core.interfaces.capabilities import read_capabilities
from core.interfaces.kinds import KINDS
from core.registry.context import plugin_context
from core.registry.manifest import MANIFEST_NAME, Manifest, read_manifest
from core.registry.records import PluginRecord, canonical, missing_requirements
from core.testing.contracts.base import Contract
from core.testing.contracts.distribution_imports import imports_of, is_public

_IMPORTED = """
import importlib, sys
{code}
print(" ".join(sorted(sys.modules)))
"""


class DistributionContract(Contract):
    """Manifest, entry points, imports and metadata of one distribution. `package`: its import package."""

    package: ClassVar[str] = ""

    # -- what is tested

    def folder(self) -> Path:
        """Of the import package; found without importing it."""
        assert self.package, f"{type(self).__name__}.package is empty; give the name of your import package"
        spec = importlib.util.find_spec(self.package)
        assert spec is not None, f"package {self.package!r} is not installed"
        assert spec.submodule_search_locations, f"{self.package} is a single module; it must be a package"
        return Path(next(iter(spec.submodule_search_locations)))

    def manifest(self) -> Manifest:
        return read_manifest(self.folder() / MANIFEST_NAME)

    def entry_points(self) -> dict[tuple[str, str], importlib.metadata.EntryPoint]:
        """(kind, name) -> entry point, of those that lead into the package."""
        return {
            (kind.name, point.name): point
            for kind in KINDS.values()
            for point in importlib.metadata.entry_points(group=kind.group)
            if _top(point.value) == self.package
        }

    def distribution(self) -> importlib.metadata.Distribution:
        """The one whose entry points lead into the package."""
        owners = {
            canonical(point.dist.name): point.dist for point in self.entry_points().values() if point.dist is not None
        }
        assert owners, f"no installed distribution has an entry point of core that leads into {self.package}"
        assert len(owners) == 1, f"{self.package} is claimed by {', '.join(sorted(owners))}"
        return next(iter(owners.values()))

    def records(self) -> list[PluginRecord]:
        name = canonical(self.distribution().name)
        return [record for record in self.catalog().records if canonical(record.distribution) == name]

    # -- laws

    def test_plugin_is_found_and_loaded_as_core_does(self) -> None:
        """Every plugin of the distribution: its state, its import, its interface and its settings model. Those whose
        packages this machine lacks are skipped, and listed."""
        missing = {}
        for record in self.records():
            lacks = missing_requirements(record.requires_packages)
            if lacks:
                missing[record.full_name] = lacks
                continue
            self.catalog().load(record.kind, record.full_name)
            plugin_context(record, {})
        if missing:
            pytest.skip("; ".join(f"{name}: {lacks}" for name, lacks in missing.items()))

    def test_manifest_and_entry_points_agree(self) -> None:
        stated = {(entry.kind, entry.name) for entry in self.manifest().plugin}
        points = set(self.entry_points())
        assert not stated - points, f"in {MANIFEST_NAME} and no entry point: {sorted(stated - points)}"
        assert not points - stated, f"entry points that {MANIFEST_NAME} lacks: {sorted(points - stated)}"

    def test_manifest_is_shipped(self) -> None:
        """As a file of the distribution, or of the source tree that an editable install leads to."""
        files = self.distribution().files or []
        wanted = f"{self.package}/{MANIFEST_NAME}"
        if not any(path.suffix == ".pth" or "__editable__" in path.name for path in files):
            assert any(str(path) == wanted for path in files), f"the wheel holds no {wanted}"
        assert (self.folder() / MANIFEST_NAME).is_file()

    def test_manifest_says_what_people_need(self) -> None:
        for entry in self.manifest().plugin:
            assert entry.summary.strip(), f"{entry.kind} {entry.name!r} has no summary"
            assert "\n" not in entry.summary, f"the summary of {entry.kind} {entry.name!r} is more than a line"

    def test_interface_versions_meet_core(self) -> None:
        for entry in self.manifest().plugin:
            kind = KINDS.get(entry.kind)
            assert kind is not None, f"{entry.kind!r} is no kind of this core; kinds: {', '.join(KINDS)}"
            oldest, newest = entry.api
            meet = oldest <= kind.api and newest >= kind.oldest_api
            what = f"{entry.kind} {entry.name!r} is for versions {oldest} to {newest}"
            assert meet, f"{what}, core speaks {kind.oldest_api} to {kind.api}"

    def test_capabilities_are_of_the_kind_s_schema(self) -> None:
        for entry in self.manifest().plugin:
            read = read_capabilities(KINDS[entry.kind].capabilities, entry.capabilities)
            assert not read.problems, f"{entry.kind} {entry.name!r}: {'; '.join(read.problems)}"
            assert not read.warnings, f"{entry.kind} {entry.name!r}: {'; '.join(read.warnings)}"

    def test_metadata(self) -> None:
        """Depends on core, and says under which license it comes."""
        self.require(self.package != "core", "a distribution that is not core itself")
        distribution = self.distribution()
        needs = _needs(distribution)
        assert "core" in needs, f"{distribution.name} does not depend on core; it needs {sorted(needs) or 'nothing'}"
        metadata = distribution.metadata
        fields = ("License-Expression", "License", "License-File")
        assert any(name in metadata for name in fields), f"{distribution.name} states no license"

    def test_only_public_modules_of_core_are_imported(self) -> None:
        self.require(self.package != "core", "a distribution that is not core itself")
        for found in imports_of(self.folder(), self.package):
            if found.module == "core" or found.module.startswith("core."):
                assert is_public(found.module), (
                    f"{found.where} imports {found.module}; plugins may use core.interfaces, core.layers, core.ops, "
                    "core.parsing, core.attention and core.testing"
                )

    def test_other_plugins_are_declared(self) -> None:
        """Another plugin's package may be used if the distribution depends on it."""
        others = {_top(record.target): canonical(record.distribution) for record in self.catalog().records}
        needs = _needs(self.distribution())
        for found in imports_of(self.folder(), self.package):
            owner = others.get(_top(found.module))
            if owner is not None and _top(found.module) not in (self.package, "core", ""):
                assert owner in needs, f"{found.where} imports {found.module} of {owner}, which is no dependency"

    def test_scan_imports_nothing(self) -> None:
        modules = _modules_after("from core.registry.catalog import Catalog; Catalog.scan()")
        assert "torch" not in modules
        if self.package != "core":
            assert self.package not in modules, f"a scan imported {self.package}"

    def test_importing_the_package_is_light(self) -> None:
        """The package itself (not its modules) needs neither torch nor another plugin."""
        modules = _modules_after(f"importlib.import_module({self.package!r})")
        assert "torch" not in modules, f"importing {self.package} imports torch"
        others = {_top(record.target) for record in self.catalog().records} - {self.package, "core", ""}
        assert not others & modules, f"importing {self.package} imports {', '.join(sorted(others & modules))}"


def _top(target: str) -> str:
    return target.partition(":")[0].partition(".")[0].strip()


def _needs(distribution: importlib.metadata.Distribution) -> set[str]:
    """Canonical names of the distributions that it depends on."""
    return {canonical(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) for text in distribution.requires or ()}


def _modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED.format(code=code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{code} failed:\n{done.stderr}"
    return set(done.stdout.split())
