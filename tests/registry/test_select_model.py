"""One architecture from several distributions: the one made for the device wins there, equals clash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import hardware, make_spec, model, record, records, settings, swap, write_checkpoint

from core.interfaces.errors import ConfigError, PluginClash, PluginLoadError, PluginNotFound
from core.registry import Catalog, PluginRecord
from core.registry.resolve import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


def general(dist: str = "general", **fields: Any) -> PluginRecord:
    return record("models", "XForCausalLM", model(make_spec()), dist, **fields)


def special(dist: str = "special", device: str = "chip", **fields: Any) -> PluginRecord:
    return general(dist, requires_hardware=(device,), **fields)


def catalog(*models: PluginRecord) -> Catalog:
    base = [r for r in records() if r.kind != "models"]
    return swap([*base, record("hardware", "chip", hardware(priority=-1))], *models)


def test_specific_wins_on_its_device_and_the_general_one_elsewhere(folder: Path) -> None:
    both = catalog(general(), special())
    on_chip = resolve(settings(folder, device="chip"), both).model
    assert on_chip.record is not None
    assert on_chip.record.distribution == "special"
    assert "made for chip" in on_chip.reason
    assert dict(on_chip.rejected) == {"general:XForCausalLM": "for any device; special:XForCausalLM is made for chip"}
    on_host = resolve(settings(folder, device="host"), both).model
    assert on_host.record is not None
    assert on_host.record.distribution == "general"
    assert dict(on_host.rejected) == {"special:XForCausalLM": "it needs chip, the device is host"}


def test_capability_hardware_means_the_same(folder: Path) -> None:
    chosen = resolve(
        settings(folder, device="chip"), catalog(general(), general("s", capabilities={"hardware": ["chip"]}))
    )
    assert chosen.model.record is not None
    assert chosen.model.record.distribution == "s"


def test_the_pair_does_not_count_as_a_clash() -> None:
    pair = catalog(general(), special())
    assert not any(pair.clashes(r) for r in pair.records)
    twice = catalog(special(), special("other"), special("elsewhere", "gpu"))
    assert [o.distribution for o in twice.clashes(twice.lookup("models", "special:XForCausalLM"))] == ["other"]


@pytest.mark.parametrize("make", [general, special])
def test_two_of_a_sort_clash_and_the_setting_decides(folder: Path, make: Any) -> None:
    two = catalog(make("one"), make("two"))
    with pytest.raises(PluginClash, match=r"one 1\.0 and two 1\.0") as caught:
        resolve(settings(folder, device="chip"), two)
    assert "--model-plugin one:XForCausalLM or two:XForCausalLM" in (caught.value.hint or "")
    for asked in ("two:XForCausalLM", "two"):
        chosen = resolve(settings(folder, device="chip", model_plugin=asked), two).model
        assert chosen.record is not None
        assert (chosen.record.distribution, chosen.reason) == ("two", "asked for")


def test_broken_specific_one_stops_the_start(folder: Path) -> None:
    broken = special(state="unavailable", reason="no compiler")
    broken = replace(broken, loaded=None)
    with pytest.raises(PluginLoadError, match="no compiler"):
        resolve(settings(folder, device="chip"), catalog(general(), broken))
    for way_out in ({"model_plugin": "general:XForCausalLM"}, {"disable_plugins": "special"}):
        chosen = resolve(settings(folder, device="chip", **way_out), catalog(general(), broken)).model
        assert chosen.record is not None
        assert chosen.record.distribution == "general"


def test_asked_for_plugin_of_another_architecture(folder: Path) -> None:
    other = record("models", "ZForCausalLM", model(make_spec()), "zoo")
    with pytest.raises(ConfigError, match=r"serves ZForCausalLM, but .* is a checkpoint of XForCausalLM"):
        resolve(settings(folder, model_plugin="zoo:ZForCausalLM"), catalog(general(), other))
    with pytest.raises(PluginNotFound):
        resolve(settings(folder, model_plugin="zoo"), catalog(general()))
    with pytest.raises(ConfigError, match="needs chip"):
        resolve(settings(folder, device="host", model_plugin="special"), catalog(general(), special()))


def test_a_later_architecture_serves_if_the_first_is_for_another_device(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", architectures=["ZForCausalLM", "XForCausalLM"])
    z = record("models", "ZForCausalLM", model(make_spec()), "zoo", requires_hardware=("chip",))
    assert resolve(settings(folder, device="host"), catalog(general(), z)).model.name == "XForCausalLM"
    assert resolve(settings(folder, device="chip"), catalog(general(), z)).model.name == "ZForCausalLM"
