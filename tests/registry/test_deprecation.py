"""The upgrade drill of an interface, on a made-up one: N runs on N + 1 with one warning, and is refused on N + 2."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import pytest
from registry_fakes import MakeDist, records, settings, write_checkpoint

from core.interfaces.deprecation import Superseded, missing_methods, outdated_methods, superseded
from core.interfaces.errors import PluginApiError, PluginLoadError
from core.interfaces.kinds import KINDS, Kind
from core.registry import Catalog
from core.registry.report import choice_data
from core.registry.resolve import resolve

V1 = """
from abc import ABC, abstractmethod
class Lamp(ABC):
    @abstractmethod
    def shine(self): ...
"""
V2 = """
from abc import ABC, abstractmethod
from core.interfaces.deprecation import superseded
class Lamp(ABC):
    @superseded(by="glow", since=2, removed_in=3, required=True)
    def shine(self):
        raise AssertionError("glow is implemented")
    def glow(self, level):
        return self.shine() * level
"""
V3 = """
from abc import ABC, abstractmethod
class Lamp(ABC):
    @abstractmethod
    def glow(self, level): ...
"""
OLD = "from lamps import Lamp\nclass Mine(Lamp):\n    def shine(self):\n        return 2\n"
NEW = "from lamps import Lamp\nclass Mine(Lamp):\n    def glow(self, level):\n        return level\n"
BOTH = OLD + "    def glow(self, level):\n        return 7\n"
NEITHER = "from lamps import Lamp\nclass Mine(Lamp):\n    pass\n"


def lamps(site: Path, version: int) -> dict[str, Kind]:
    """A core that speaks `version` of a made-up interface, and the version before it."""
    (site / "lamps.py").write_text({1: V1, 2: V2, 3: V3}[version])
    kind = replace(
        KINDS["moe"], name="lamps", group="core.lamps", api=version, oldest_api=max(1, version - 1),
        interface="lamps:Lamp",
    )  # fmt: skip
    return {"lamps": kind}


def plugin(make_dist: MakeDist, api: str, code: str) -> None:
    text = f'schema = 1\n[[plugin]]\nkind = "lamps"\nname = "mine"\napi = {api}\n'
    make_dist("plugin-a", {"core.lamps": {"mine": "plugin_a:Mine"}}, text, code)


def test_old_plugin_on_its_own_version(make_dist: MakeDist, site: Path) -> None:
    plugin(make_dist, "[1, 1]", OLD)
    catalog = Catalog.scan(paths=[str(site)], kinds=lamps(site, 1))
    assert catalog.load("lamps", "mine")().shine() == 2
    assert catalog.record("lamps", "mine").warnings == ()


def test_old_plugin_runs_unchanged_on_the_next_version_with_one_warning(make_dist: MakeDist, site: Path) -> None:
    plugin(make_dist, "[1, 2]", OLD)
    catalog = Catalog.scan(paths=[str(site)], kinds=lamps(site, 2))
    for _ in range(3):
        lamp = catalog.load("lamps", "mine")()
    assert lamp.glow(3) == 6
    (warning,) = catalog.record("lamps", "mine").warnings
    assert "it implements shine, which glow replaces since version 2" in warning
    assert "version 3 will no longer call it" in warning


def test_a_start_logs_the_warning_once_and_keeps_it_with_the_choice(
    make_dist: MakeDist, site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lamp = lamps(site, 2)["lamps"]
    kinds = {**KINDS, "ops": replace(KINDS["ops"], interface="lamps:Lamp", api=2)}
    text = 'schema = 1\n[[plugin]]\nkind = "ops"\nname = "mine"\napi = [1, 2]\n'
    make_dist("plugin-a", {"core.ops": {"mine": "plugin_a:Mine"}}, text, OLD)
    catalog = Catalog([*records(), *Catalog.scan(paths=[str(site)], kinds=kinds).records], kinds=kinds)
    with caplog.at_level(logging.WARNING, "core.registry"):
        resolution = resolve(settings(write_checkpoint(tmp_path / "c")), catalog)
    (choice,) = resolution.ops
    assert lamp.interface == "lamps:Lamp"
    assert choice.record is not None
    (warning,) = choice.record.warnings
    assert "glow replaces" in warning
    assert choice_data(choice)["plugin"]["warnings"] == [warning]
    (message,) = [r.getMessage() for r in caplog.records]
    assert message == resolution.warnings[0] == f"{choice.record.title}: {warning}"


def test_plugin_that_claims_only_the_old_version_is_warned_before_import_too(make_dist: MakeDist, site: Path) -> None:
    plugin(make_dist, "[1, 1]", OLD)
    catalog = Catalog.scan(paths=[str(site)], kinds=lamps(site, 2))
    assert "will drop 1" in catalog.record("lamps", "mine").warnings[0]
    catalog.load("lamps", "mine")
    assert len(catalog.record("lamps", "mine").warnings) == 2


def test_refused_before_import_when_the_method_is_gone(make_dist: MakeDist, site: Path) -> None:
    plugin(make_dist, "[1, 1]", OLD)
    catalog = Catalog.scan(paths=[str(site)], kinds=lamps(site, 3))
    with pytest.raises(PluginApiError, match="too old"):
        catalog.load("lamps", "mine")
    assert "plugin_a" not in sys.modules


def test_new_plugin_is_refused_by_an_old_core_before_import(make_dist: MakeDist, site: Path) -> None:
    plugin(make_dist, "[2, 2]", NEW)
    catalog = Catalog.scan(paths=[str(site)], kinds=lamps(site, 1))
    with pytest.raises(PluginApiError, match="needs a newer core"):
        catalog.load("lamps", "mine")
    assert "plugin_a" not in sys.modules


@pytest.mark.parametrize("code", [NEW, BOTH])
def test_up_to_date_plugins_are_not_warned_about(make_dist: MakeDist, site: Path, code: str) -> None:
    plugin(make_dist, "[1, 2]", code)
    catalog = Catalog.scan(paths=[str(site)], kinds=lamps(site, 2))
    assert catalog.load("lamps", "mine")().glow(7) == 7
    assert catalog.record("lamps", "mine").warnings == ()


def test_one_of_the_two_is_needed(make_dist: MakeDist, site: Path) -> None:
    plugin(make_dist, "[2, 2]", NEITHER)
    with pytest.raises(PluginLoadError, match=r"lacks glow of lamps\.Lamp"):
        Catalog.scan(paths=[str(site)], kinds=lamps(site, 2)).load("lamps", "mine")


class Interface(ABC):
    @classmethod
    @superseded(by="new", since=2, removed_in=3)
    def old(cls) -> int:
        return 1

    @classmethod
    def new(cls) -> int:
        return cls.old()

    @abstractmethod
    def other(self) -> None: ...


def test_class_methods_and_inherited_overrides() -> None:
    class Base(Interface):
        @classmethod
        def old(cls) -> int:
            return 5

        def other(self) -> None: ...

    class Leaf(Base):
        pass

    assert outdated_methods(Leaf, Interface) == (Superseded("old", "new", 2, 3),)
    assert Leaf.new() == 5
    assert missing_methods(Leaf, Interface) == outdated_methods(Interface, Interface) == ()
