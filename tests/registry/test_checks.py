"""The last steps of resolve: what was chosen fits together and is what was asked for; what is turned off stays off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import attention, hardware, quant, record, records, settings, swap, write_checkpoint

from core.interfaces.errors import ConfigError, PluginLoadError
from core.interfaces.hardware import EngineFacts
from core.registry import Choice, LockSet
from core.registry.checks import check_requested
from core.registry.resolve import STEPS, Trace, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


class TestRefusals:
    def test_quantization_that_cannot_serve_is_refused_at_resolve(self, folder: Path) -> None:
        catalog = swap(records(), record("quant", "none", quant(None, rejects="sizes must be multiples of 7")))
        with pytest.raises(ConfigError, match="quantization 'none' cannot serve XForCausalLM: sizes must be") as caught:
            resolve(settings(folder), catalog)
        assert caught.value.field == "model.quantization"
        assert "--quantization" in (caught.value.hint or "")

    def test_quantization_that_cannot_be_set_up(self, folder: Path) -> None:
        class Broken:
            def __init__(self, config: Any, ctx: Any) -> None:
                raise RuntimeError("no library")

            @classmethod
            def recognises(cls, config: Any) -> bool:
                return True

        with pytest.raises(PluginLoadError, match="RuntimeError: no library"):
            resolve(settings(folder), swap(records(), record("quant", "none", Broken)))

    def test_device_that_cannot_run_the_engine_is_refused_at_resolve(self, folder: Path) -> None:
        seen: list[EngineFacts] = []

        class Picky(hardware()):  # type: ignore[misc]
            def rejects(self, facts: EngineFacts) -> str | None:
                seen.append(facts)
                return f"it takes pages of 64, not {facts.page_size}; use --page-size 64"

        with pytest.raises(ConfigError, match="device 'host' cannot run this: it takes pages of 64, not 16") as caught:
            resolve(settings(folder), swap(records(), record("hardware", "host", Picky)))
        assert caught.value.field == "engine.device"
        assert (seen[0].attention, seen[0].quantization, seen[0].moe) == (("plain",), "none", "plain")


class TestRequested:
    @pytest.mark.parametrize(
        ("given", "changed"),
        [
            ({"device": "host"}, {"hardware": "other"}),
            ({"attention_backend": "plain"}, {"attention": "other"}),
            ({"quantization": "none"}, {"quant": "other"}),
            ({"moe_backend": "plain"}, {"moe": "other"}),
            ({"prefix_cache": "radix"}, {"prefix_cache": "other"}),
            ({"schedule_policy": "fcfs"}, {"schedule_policy": "other"}),
            ({"tool_call_parser": "none"}, {"tool_parser": "other"}),
            ({"reasoning_parser": "none"}, {"reasoning_parser": "other"}),
            ({"dtype": "bfloat16"}, {"dtype": "float32"}),
            ({"overlap": "off"}, {"overlap": True}),
            ({"page_size": 16}, {"page_size": 32}),
        ],
    )
    def test_a_difference_is_an_error(self, folder: Path, given: dict[str, Any], changed: dict[str, Any]) -> None:
        asked = settings(folder, **given)
        resolution = resolve(asked, swap(records()))
        (field, value), ((name, _),) = next(iter(changed.items())), given.items()
        old = getattr(resolution, field)
        other = Choice("any", "other", None, None, "by mistake")
        new = value if value != "other" else ((old[0], other) if isinstance(old, tuple) else other)
        wrong = replace(resolution, **{field: new})
        with pytest.raises(ConfigError, match=f"{name} is .* would be in effect"):
            check_requested(asked, wrong, explicit_cache=True)
        check_requested(asked, resolution, explicit_cache=True)
        if "schedule_policy" not in given:  # which is always asked for, by its default
            check_requested(settings(folder), wrong, explicit_cache=False)

    def test_lists_are_compared_as_sets(self, folder: Path) -> None:
        listener = type("Listener", (), {})
        catalog = swap(records(), record("hooks", "one", listener), record("hooks", "two", listener))
        asked = settings(folder, hooks="one,two")
        resolution = resolve(asked, catalog)
        for wrong in (resolution.hooks[:1], ()):
            with pytest.raises(ConfigError, match=r"hooks is .* would be in effect"):
                check_requested(asked, replace(resolution, hooks=wrong), explicit_cache=False)
        for given in ("one", "none"):
            with pytest.raises(ConfigError, match="hooks is"):
                check_requested(settings(folder, hooks=given), resolution, explicit_cache=False)
        assert resolve(settings(folder, hooks="none", routes="none"), catalog).hooks == ()

    def test_full_names_are_the_same_request(self, folder: Path) -> None:
        resolve(settings(folder, attention_backend="dummy:plain", device="Dummy:host"), swap(records()))


class TestDisabled:
    def test_never_loaded_and_an_error_if_asked_for(self, folder: Path) -> None:
        fast = record("attention", "fast", capabilities={"priority": 9})  # cannot be imported
        for off in ("fast", "dummy:fast", "attention/plain,attention/dummy:fast"):
            catalog = swap(records(), fast, record("attention", "spare", attention()))
            (choice,) = resolve(settings(folder, disable_plugins=off), catalog).attention
            assert "disable_plugins names" in dict(choice.rejected)["fast"]
        with pytest.raises(PluginLoadError, match=r"'fast' .* is turned off: disable_plugins names 'fast'") as caught:
            resolve(settings(folder, disable_plugins="fast", attention_backend="fast"), swap(records(), fast))
        assert "take it off the list" in (caught.value.hint or "")

    def test_whole_distribution_resolves_a_clash(self, folder: Path) -> None:
        twin = record("moe", "plain", object(), "Other_Dist")
        catalog = type(swap([]))([*records(), twin])
        assert resolve(settings(folder, disable_plugins="other-dist"), catalog).moe.record.distribution == "dummy"  # type: ignore[union-attr]
        assert {r.state for r in catalog.records} == {"available"}  # the catalog that was given is as it was

    def test_only_plugin_of_an_architecture(self, folder: Path) -> None:
        with pytest.raises(Exception, match="only installed plugin for architecture 'XForCausalLM' is turned off"):
            resolve(settings(folder, disable_plugins="XForCausalLM"), swap(records()))

    def test_name_that_means_nothing(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="'plian'") as caught:
            resolve(settings(folder, disable_plugins="plian"), swap(records()))
        assert "did you mean 'plain'?" in (caught.value.hint or "")

    def test_a_child_agrees(self, folder: Path) -> None:
        catalog = swap(records(), record("attention", "fast", attention(), capabilities={"priority": 9}))
        off = settings(folder, disable_plugins="fast")
        lock = resolve(off, catalog).lock()
        assert isinstance(lock, LockSet)
        assert resolve(type(off).model_validate_json(off.model_dump_json()), catalog, lock).lock() == lock


def test_trace_keeps_what_was_decided_before_it_failed(folder: Path) -> None:
    trace = Trace()
    narrow = swap(records(), record("attention", "plain", attention(page_sizes=(4,))))
    with pytest.raises(ConfigError):
        resolve(settings(folder, page_size=8), narrow, trace=trace)
    assert trace.step == "attention"
    chosen = [row.what for row in trace.rows if row.kind]
    assert chosen[:4] == ["checkpoint", "hardware", "model", "quantization"]
    trace = Trace()
    with pytest.raises(ConfigError):
        resolve(settings(folder, disable_plugins="nobody"), swap(records()), trace=trace)
    assert (trace.step, trace.rows) == ("disabled plugins", [])
    names = [name for name, _ in STEPS]
    assert names.index("hardware") < names.index("model")  # a model may be made for one device
