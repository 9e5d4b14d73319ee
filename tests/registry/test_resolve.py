"""resolve: every choice, its reason, what was rejected; and the errors that stop a start."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import (
    attention,
    broken,
    cache,
    hardware,
    make_spec,
    model,
    reason_of,
    record,
    records,
    rejected,
    settings,
    swap,
    write_checkpoint,
)

from core.config.sections import Settings
from core.interfaces.errors import (
    CheckpointError,
    ConfigError,
    PluginApiError,
    PluginClash,
    PluginLoadError,
    PluginMismatch,
    PluginNotFound,
    UnknownArchitecture,
)
from core.interfaces.hardware import ProbeResult
from core.interfaces.spec import ModelDefaults, StateKind
from core.registry import Catalog, LockSet
from core.registry.resolve import resolve


class TestWhole:
    def test_everything_is_decided_and_explained(self, folder: Path) -> None:
        resolution = resolve(settings(folder), swap(records()))
        assert resolution.effective == {
            "model": str(folder),
            "architecture": "XForCausalLM",
            "device": "host",
            "dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16",
            "quantization": "none",
            "attention_backend": "plain",
            "prefix_cache": "radix",
            "moe_backend": "plain",
            "schedule_policy": "fcfs",
            "ops": "none",
            "page_size": "16",
            "context_length": "4096",
            "chunk_tokens": "2048",
            "overlap": "off",
            "tensor_parallel_size": "1",
            "task": "generate",
            "pooling": "none",
            "tool_call_parser": "none",
            "reasoning_parser": "none",
            "grammar_backend": "none",
            "logit_processors": "none",
            "hooks": "none",
            "routes": "none",
        }
        assert resolution.hf_config["model_type"] == "x_y"
        assert resolution.arch is resolution.model.target
        rows = {row.what: row for row in resolution.explain()}
        assert rows["attention"].chosen == "plain (dummy 1.0)"
        assert all(row.reason for row in rows.values())

    def test_lock_names_each_plugin_once_and_a_child_agrees(self, folder: Path) -> None:
        spec = make_spec(StateKind.FULL, StateKind.SLIDING_WINDOW)
        catalog = swap(records(spec))
        lock = resolve(settings(folder), catalog).lock()
        assert [(p.kind, p.name) for p in lock.plugins] == [
            ("attention", "plain"), ("hardware", "host"), ("models", "XForCausalLM"),
            ("moe", "plain"), ("prefix_cache", "radix"), ("quant", "none"),
            ("schedule_policies", "fcfs"),
        ]  # fmt: skip
        assert resolve(settings(folder), catalog, lock).lock() == lock

    def test_a_child_that_would_choose_otherwise_stops(self, folder: Path) -> None:
        lock = resolve(settings(folder), swap(records())).lock()
        better = swap(records(), record("hardware", "better", hardware(priority=9)))
        with pytest.raises(PluginMismatch, match=r"hardware dummy:better 1\.0: chosen here only"):
            resolve(settings(folder), better, lock)

    def test_settings_of_a_plugin_that_is_not_installed(self, folder: Path) -> None:
        wrong = settings(folder, plugins={"plian": {"a": 1}})
        with pytest.raises(ConfigError, match="did you mean 'plain'"):
            resolve(wrong, swap(records()))


class TestCheckpoint:
    def bundle(self, name: str, folder: Path, default: bool = False, dist: str = "dummy") -> Any:
        return record("checkpoints", name, lambda: folder, dist, capabilities={"default": default})

    def test_bundled_by_name_and_by_default(self, folder: Path) -> None:
        catalog = swap(records(), self.bundle("tiny", folder, default=True), self.bundle("other", folder / "x"))
        by_default = resolve(settings(None), catalog)
        assert by_default.checkpoint == folder
        assert "default" in by_default.checkpoint_choice.reason
        assert resolve(settings("tiny"), catalog).checkpoint_choice.name == "tiny"
        assert ("checkpoints", "tiny") in {(p.kind, p.name) for p in by_default.lock().plugins}

    def test_folder_of_the_same_name_without_a_checkpoint_does_not_hide_it(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tiny").mkdir()
        catalog = swap(records(), self.bundle("tiny", folder))
        assert resolve(settings("tiny"), catalog).checkpoint == folder
        write_checkpoint(tmp_path / "tiny")
        assert resolve(settings("tiny"), catalog).checkpoint == tmp_path / "tiny"

    def test_no_default(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="--model") as caught:
            resolve(settings(None), swap(records(), self.bundle("other", folder)))
        assert "pip install" in str(caught.value)

    def test_two_defaults(self, folder: Path) -> None:
        catalog = swap(records(), self.bundle("a", folder, True), self.bundle("b", folder, True))
        with pytest.raises(ConfigError, match="dummy:a, dummy:b"):
            resolve(settings(None), catalog)

    def test_neither_folder_nor_name(self, folder: Path) -> None:
        catalog = swap(records(), self.bundle("tiny", folder))
        with pytest.raises(ConfigError, match="no such folder") as caught:
            resolve(settings("/does/not/exist"), catalog)
        assert "bundled: tiny" in str(caught.value)
        with pytest.raises(ConfigError, match="it is a file"):
            resolve(settings(folder / "config.json"), catalog)

    def test_callable_that_fails(self) -> None:
        def boom() -> Path:
            raise OSError("disk gone")

        with pytest.raises(PluginLoadError, match="disk gone"):
            resolve(settings("tiny"), swap(records(), record("checkpoints", "tiny", boom)))

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (None, "no config.json"),
            (b"{", "not valid JSON"),
            (b"\xff\xff", "cannot be read"),
            (b"[1]", "must be a JSON object"),
            (b"{}", '"architectures" is None'),
            (b'{"architectures": []}', '"architectures" is'),
            (b'{"architectures": [3]}', '"architectures" is'),
        ],
    )
    def test_unusable_config(self, tmp_path: Path, content: bytes | None, text: str) -> None:
        if content is not None:
            (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            resolve(settings(tmp_path), swap(records()))
        assert text in str(caught.value)
        assert str(tmp_path) in str(caught.value)


class TestModel:
    def test_unknown_architecture(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "c", architectures=["ZForCausalLM"], model_type="z_net")
        with pytest.raises(UnknownArchitecture) as caught:
            resolve(settings(folder), swap(records()))
        assert "installed architectures: XForCausalLM" in caught.value.message
        assert "'ZForCausalLM'" in (caught.value.hint or "")
        assert "plugin-z-net" in (caught.value.hint or "")

    def test_the_hint_names_the_family_too(self, tmp_path: Path) -> None:
        """One distribution serves the family; its manifest cannot be read while it is not installed."""
        folder = write_checkpoint(tmp_path / "c", architectures=["ZForCausalLM"], model_type="z4_net_lite")
        with pytest.raises(UnknownArchitecture) as caught:
            resolve(settings(folder), swap(records()))
        assert (caught.value.hint or "").endswith("plugin-z4-net-lite, plugin-z4-net, plugin-z4, plugin-z")

    def test_unknown_architecture_without_model_type(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "c", architectures=["ZForCausalLM"], model_type=None)
        with pytest.raises(UnknownArchitecture) as caught:
            resolve(settings(folder), Catalog.from_records([r for r in records() if r.kind != "models"]))
        assert "installed architectures: none" in caught.value.message
        assert "plugin-" not in (caught.value.hint or "")

    def test_first_installed_of_several(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "c", architectures=["Z", "XForCausalLM"])
        assert resolve(settings(folder), swap(records())).model.name == "XForCausalLM"

    def test_clash_of_the_used_architecture(self, folder: Path) -> None:
        catalog = Catalog.from_records([*records(), record("models", "XForCausalLM", model(make_spec()), "other")])
        with pytest.raises(PluginClash, match=r"dummy 1\.0 and other 1\.0"):
            resolve(settings(folder), catalog)

    def test_api_error_of_the_used_architecture(self, folder: Path) -> None:
        old = replace(records()[0], state="unavailable", reason="old", api_mismatch="the plugin is too old")
        with pytest.raises(PluginApiError, match="too old"):
            resolve(settings(folder), swap(records(), old))

    def test_model_that_needs_another_device(self, folder: Path) -> None:
        elsewhere = replace(records()[0], requires_hardware=("gpu",))
        with pytest.raises(ConfigError, match=r"'XForCausalLM'.*needs gpu, the device is host"):
            resolve(settings(folder), swap(records(), elsewhere))

    def test_exception_in_the_plugin_names_it(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"dummy 1\.0.*KeyError: 'hidden_size'"):
            resolve(settings(folder), swap(records(KeyError("hidden_size"))))
        with pytest.raises(CheckpointError, match="state its defaults"):
            resolve(settings(folder), swap(records(None, ValueError("x"))))
        with pytest.raises(CheckpointError, match=r"^bad field$"):
            resolve(settings(folder), swap(records(CheckpointError("bad field"))))


class TestHardware:
    def test_auto_takes_the_highest_priority(self, folder: Path) -> None:
        catalog = swap(
            records(),
            record("hardware", "fast", hardware(priority=10)),
            record("hardware", "absent", hardware(present=False, priority=99)),
        )
        choice = resolve(settings(folder), catalog).hardware
        assert choice.name == "fast"
        assert rejected(choice) == {"absent": "no such device", "host": "present, priority 0 is below 10"}

    def test_named_device_is_used_or_an_error(self, folder: Path) -> None:
        catalog = swap(
            records(),
            record("hardware", "fast", hardware(priority=10)),
            record("hardware", "absent", hardware(present=False)),
        )
        assert resolve(settings(folder, device="host"), catalog).hardware.reason.startswith("asked for")
        with pytest.raises(ConfigError, match="no such device"):
            resolve(settings(folder, device="absent"), catalog)
        with pytest.raises(PluginNotFound):
            resolve(settings(folder, device="warp"), catalog)

    def test_broken_plugin_is_recorded_not_silent(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        catalog = swap(records(), record("hardware", "fast"))  # its target cannot be imported
        with caplog.at_level(logging.WARNING, "core.registry"):
            choice = resolve(settings(folder), catalog).hardware
        assert choice.name == "host"
        assert "ModuleNotFoundError" in rejected(choice)["fast"]
        assert "fast is not used" in caplog.text
        with pytest.raises(PluginLoadError, match="ModuleNotFoundError"):
            resolve(settings(folder, device="fast"), catalog)

    def test_probe_that_raises(self, folder: Path) -> None:
        def boom() -> ProbeResult:
            raise RuntimeError("driver is confused")

        catalog = swap(records(), record("hardware", "fast", hardware(probe=boom)))
        assert "driver is confused" in rejected(resolve(settings(folder), catalog).hardware)["fast"]
        with pytest.raises(ConfigError, match="driver is confused"):
            resolve(settings(folder, device="fast"), catalog)

    def test_none_usable(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="host: no such device"):
            resolve(settings(folder), swap(records(), record("hardware", "host", hardware(present=False))))

    def test_clashing_devices_are_not_guessed(self, folder: Path) -> None:
        catalog = Catalog.from_records([*records(), record("hardware", "host", hardware(priority=5), "other")])
        with pytest.raises(ConfigError, match="dummy:host: the name is also claimed by other"):
            resolve(settings(folder), catalog)
        chosen = resolve(settings(folder, device="other:host"), catalog).hardware
        assert chosen.record is not None
        assert chosen.record.distribution == "other"


class TestDtypeAndLengths:
    def test_dtype(self, tmp_path: Path) -> None:
        catalog = swap(records(), record("hardware", "host", hardware(dtypes=("float32", "bfloat16"))))
        new = write_checkpoint(tmp_path / "a", torch_dtype=None, dtype="bfloat16")
        assert resolve(settings(new), catalog).dtype == "bfloat16"
        half = write_checkpoint(tmp_path / "b", torch_dtype="float16")
        resolution = resolve(settings(half), catalog)
        assert resolution.dtype == "float32"
        assert "float16 is not usable on host" in reason_of(resolution, "dtype")
        assert resolve(settings(half, dtype="bfloat16"), catalog).dtype == "bfloat16"
        with pytest.raises(ConfigError, match="float32, bfloat16"):
            resolve(settings(half, dtype="float16"), catalog)

    def test_dtype_of_the_spec_where_config_has_none(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "a", torch_dtype=None)
        catalog = swap(
            records(replace(make_spec(), dtype="float16")),
            record("hardware", "host", hardware(dtypes=("float32", "float16"))),
        )
        assert resolve(settings(folder), catalog).dtype == "float16"

    def test_context_length(self, folder: Path) -> None:
        assert resolve(settings(folder, context_length=100), swap(records())).context_length == 100
        with pytest.raises(ConfigError, match="at most 4096"):
            resolve(settings(folder, context_length=4097), swap(records()))

    def test_chunk_and_overlap(self, folder: Path) -> None:
        asynchronous = swap(records(), record("hardware", "host", hardware(async_steps=True, chunk_tokens=77)))
        assert resolve(settings(folder), asynchronous).chunk_tokens == 77
        assert resolve(settings(folder, chunked_prefill_size=5), asynchronous).chunk_tokens == 5
        for mode, tokens in (("interactivity", 38), ("balanced", 77), ("throughput", 154)):
            assert resolve(settings(folder, performance_mode=mode), asynchronous).chunk_tokens == tokens
        both = settings(folder, performance_mode="throughput", chunked_prefill_size=5)
        assert resolve(both, asynchronous).chunk_tokens == 5
        assert resolve(settings(folder), asynchronous).overlap is True
        assert resolve(settings(folder, overlap="off"), asynchronous).overlap is False
        assert resolve(settings(folder, overlap="on"), asynchronous).overlap is True
        with pytest.raises(ConfigError, match="overlap is 'on'"):
            resolve(settings(folder, overlap="on"), swap(records()))


class TestPrefixCache:
    def test_default_that_cannot_store_falls_to_none_with_reason(self, folder: Path) -> None:
        both = attention(state_kinds=frozenset({StateKind.FULL, StateKind.RECURRENT}))
        catalog = swap(records(make_spec(StateKind.FULL, StateKind.RECURRENT)), record("attention", "plain", both))
        choice = resolve(settings(folder), catalog).prefix_cache
        assert choice.name == "none"
        assert "recurrent" in choice.reason
        assert "recurrent" in rejected(choice)["radix"]
        with pytest.raises(ConfigError, match="recurrent") as caught:
            resolve(settings(folder, prefix_cache="radix"), catalog)
        assert "--prefix-cache none" in (caught.value.hint or "")

    def test_child_agrees_though_settings_that_were_sent_look_explicit(self, folder: Path) -> None:
        both = attention(state_kinds=frozenset({StateKind.FULL, StateKind.RECURRENT}))
        catalog = swap(records(make_spec(StateKind.FULL, StateKind.RECURRENT)), record("attention", "plain", both))
        parent = settings(folder)
        child = Settings.model_validate_json(parent.model_dump_json())
        assert "prefix_cache" in child.cache.model_fields_set
        assert resolve(child, catalog, resolve(parent, catalog).lock()).prefix_cache.name == "none"

    def test_off(self, folder: Path) -> None:
        assert resolve(settings(folder, disable_radix_cache=True), swap(records())).prefix_cache.name == "none"
        assert resolve(settings(folder, prefix_cache="none"), swap(records())).prefix_cache.reason == "asked for"

    def test_off_in_settings_made_by_hand(self, folder: Path) -> None:
        by_hand = settings(folder)
        off = by_hand.cache.model_copy(update={"disable_radix_cache": True})
        assert resolve(by_hand.model_copy(update={"cache": off}), swap(records())).prefix_cache.name == "none"
        both = type(off)(disable_radix_cache=True, prefix_cache="radix")
        with pytest.raises(ConfigError, match="leave one"):
            resolve(by_hand.model_copy(update={"cache": both}), swap(records()))

    def test_custom(self, folder: Path) -> None:
        catalog = swap(records(), record("prefix_cache", "mine", cache("full")))
        assert resolve(settings(folder, prefix_cache="mine"), catalog).prefix_cache.name == "mine"
        with pytest.raises(PluginNotFound, match="'mime'"):
            resolve(settings(folder, prefix_cache="mime"), catalog)


class TestSchedulePolicy:
    def test_any_installed_policy_is_chosen_by_name(self, folder: Path) -> None:
        target = type("Shortest", (), {})
        catalog = swap(records(), record("schedule_policies", "shortest", target))
        resolution = resolve(settings(folder, schedule_policy="shortest"), catalog)
        assert resolution.schedule_policy.target is target
        assert resolution.effective["schedule_policy"] == "shortest"
        assert any(p.name == "shortest" for p in resolution.lock().plugins)
        assert any(row.what == "schedule policy" and "shortest" in row.chosen for row in resolution.explain())

    def test_an_unknown_policy_lists_what_is_installed_and_the_nearest(self, folder: Path) -> None:
        with pytest.raises(PluginNotFound, match="'fcsf'") as error:
            resolve(settings(folder, schedule_policy="fcsf"), swap(records()))
        assert error.value.hint is not None
        assert all(word in error.value.hint for word in ("did you mean 'fcfs'", "installed: fcfs", "--schedule-policy"))

    def test_a_policy_of_another_device_is_refused(self, folder: Path) -> None:
        other = record("schedule_policies", "far", object, requires_hardware=("elsewhere",))
        with pytest.raises(ConfigError, match="schedule_policy is 'far'"):
            resolve(settings(folder, schedule_policy="far"), swap(records(), other))


class TestMoeOpsParsers:
    def test_moe(self, folder: Path) -> None:
        fast = record("moe", "fast", object(), capabilities={"priority": 2, "hardware": ["gpu"]})
        catalog = swap(records(), fast, record("moe", "zzz", object()))
        choice = resolve(settings(folder), catalog).moe
        assert choice.name == "plain"
        assert rejected(choice) == {
            "fast": "it runs on gpu, the device is host", "zzz": "comes after the chosen one",
        }  # fmt: skip
        with pytest.raises(ConfigError, match="runs on gpu"):
            resolve(settings(folder, moe_backend="fast"), catalog)
        assert resolve(settings(folder, moe_backend="zzz"), catalog).moe.name == "zzz"

    def test_ops_merge_order_and_reasons(self, folder: Path) -> None:
        catalog = swap(
            records(),
            record("ops", "late", object(), capabilities={"priority": 5}),
            record("ops", "early", object()),
            record("ops", "gpu", object(), capabilities={"hardware": ["gpu"]}),
            record("ops", "broken"),
        )
        resolution = resolve(settings(folder), catalog)
        assert [choice.name for choice in resolution.ops] == ["early", "late"]
        left_out = dict(resolution.ops_rejected)
        assert "gpu" in left_out["gpu"]
        assert "ModuleNotFoundError" in left_out["broken"]

    def test_parsers(self, folder: Path) -> None:
        tools = record("tool_parsers", "t", object())
        wish = records(None, ModelDefaults(tool_parser="t", reasoning_parser="r"))
        resolution = resolve(settings(folder), swap(wish, tools))
        assert (resolution.tool_parser.name, resolution.tool_parser.reason) == ("t", "preferred by the model")
        assert (
            resolve(settings(folder, tool_call_parser="auto"), swap(wish, tools)).tool_parser == resolution.tool_parser
        )
        assert resolution.reasoning_parser.target is None
        assert "'r', which is not installed" in resolution.reasoning_parser.reason
        assert resolve(settings(folder, tool_call_parser="none"), swap(wish, tools)).tool_parser.target is None
        with pytest.raises(PluginNotFound, match="--tool-call-parser none"):
            resolve(settings(folder, tool_call_parser="u"), swap(wish, tools))
        unusable = resolve(settings(folder), swap(wish, broken(tools))).tool_parser
        assert unusable.target is None
        assert "it is broken" in unusable.reason
        assert resolve(settings(folder, tool_call_parser="t"), swap(records(), tools)).tool_parser.reason == "asked for"


def test_effective_is_flat_text(folder: Path) -> None:
    effective = resolve(settings(folder), swap(records())).effective
    assert json.loads(json.dumps(effective)) == effective
    assert isinstance(resolve(settings(folder), swap(records())).lock(), LockSet)
