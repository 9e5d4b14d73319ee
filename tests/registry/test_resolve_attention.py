"""resolve: attention backends, KV types and quantization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import (
    attention,
    broken,
    hardware,
    make_spec,
    quant,
    quant_of_nothing,
    reason_of,
    record,
    records,
    rejected,
    settings,
    swap,
    write_checkpoint,
)

from core.interfaces.errors import (
    CheckpointError,
    ConfigError,
    PluginLoadError,
)
from core.interfaces.spec import AttentionSpec, LayerSpec, ModelDefaults, StateKind
from core.registry.resolve import resolve


class TestAttention:
    @pytest.mark.parametrize(
        ("caps", "spec", "reason"),
        [
            ({"state_kinds": frozenset({StateKind.MLA_LATENT})}, make_spec(), "state of kind full"),
            ({"head_dims": (32, 128)}, make_spec(), "head dimension 64"),
            ({"dtypes": ("float32",)}, make_spec(), "cannot compute in bfloat16"),
            ({"hardware": ("elsewhere",)}, make_spec(), "elsewhere"),
            ({}, make_spec(softcap=30.0), "soft-capping"),
            ({}, make_spec(has_sinks=True), "sinks"),
        ],
    )
    @pytest.mark.parametrize("where", ["class", "manifest"])
    def test_incapable_backends_are_rejected_with_reason(
        self, folder: Path, caps: dict[str, Any], spec: Any, reason: str, where: str
    ) -> None:
        stated = {k: sorted(v) if isinstance(v, frozenset) else list(v) for k, v in caps.items()}
        stated |= {"softcap": False, "sinks": False}
        # In the manifest case there is no object: being rejected must not import anything.
        bad = (
            record("attention", "bad", attention(**caps), capabilities={"priority": 9})
            if where == "class"
            else record("attention", "bad", capabilities={**stated, "priority": 9})
        )
        able = record("attention", "plain", attention(softcap=True, sinks=True))
        (choice,) = resolve(settings(folder), swap(records(spec), able, bad)).attention
        assert choice.name == "plain"
        assert reason in rejected(choice)["bad"]
        with pytest.raises((ConfigError, PluginLoadError)):
            resolve(settings(folder, attention_backend="bad"), swap(records(spec), able, bad))

    def test_a_backend_may_lack_something_on_this_machine(self, folder: Path) -> None:
        lacking = attention()
        lacking.unavailable = classmethod(lambda cls: "no fast library; pip install fast-library")  # type: ignore[attr-defined]
        catalog = swap(records(), record("attention", "fast", lacking, capabilities={"priority": 9}))
        (choice,) = resolve(settings(folder), catalog).attention
        assert choice.name == "plain"
        assert rejected(choice)["fast"] == "no fast library; pip install fast-library"
        with pytest.raises(ConfigError, match=r"'fast'.*pip install fast-library"):
            resolve(settings(folder, attention_backend="fast"), catalog)

    def test_order_model_then_hardware_then_priority(self, folder: Path) -> None:
        names = ("a", "b", "c")
        extra = [
            record("attention", n, attention(), capabilities={"priority": i}) for i, n in enumerate(names, start=1)
        ]
        plain = [r for r in records() if r.kind != "attention"]
        assert resolve(settings(folder), swap(plain, *extra)).attention[0].name == "c"
        prefers = record("hardware", "host", hardware(preferred=("gone", "b")))
        choice = resolve(settings(folder), swap(plain, *extra, prefers)).attention[0]
        assert (choice.name, choice.reason) == ("b", "preferred by host")
        wishes = swap([*records(None, ModelDefaults(attention=("a",))), *extra], prefers)
        choice = resolve(settings(folder), wishes).attention[0]
        assert (choice.name, choice.reason) == ("a", "preferred by the model")
        assert resolve(settings(folder, attention_backend="c"), wishes).attention[0].name == "c"

    def test_groups_may_get_different_backends(self, folder: Path) -> None:
        spec = make_spec(StateKind.FULL, StateKind.SLIDING_WINDOW)
        full_only = record(
            "attention", "full", attention(state_kinds=frozenset({StateKind.FULL})), capabilities={"priority": 5}
        )
        resolution = resolve(settings(folder), swap(records(spec), full_only))
        assert [c.name for c in resolution.attention] == ["full", "plain"]
        assert resolution.effective["attention_backend"] == "full=full,sliding_window=plain"
        with pytest.raises(ConfigError, match="'sliding_window'"):
            resolve(settings(folder, attention_backend="full"), swap(records(spec), full_only))

    def test_page_size(self, folder: Path) -> None:
        only = record("attention", "plain", attention(page_sizes=(32, 64)))
        resolution = resolve(settings(folder), swap(records(), only))
        assert resolution.page_size == 32
        assert "does not take 16" in reason_of(resolution, "page size")
        assert resolve(settings(folder, page_size=64), swap(records(), only)).page_size == 64
        with pytest.raises(ConfigError, match="page size 8 is not among 32, 64"):
            resolve(settings(folder, page_size=8), swap(records(), only))
        wish = records(None, ModelDefaults(page_size=4))
        assert resolve(settings(folder), swap(wish)).page_size == 4

    def test_second_group_must_take_the_page_size_of_the_first(self, folder: Path) -> None:
        spec = make_spec(StateKind.FULL, StateKind.SLIDING_WINDOW)
        full = attention(state_kinds=frozenset({StateKind.FULL}), page_sizes=(64,))
        window = attention(state_kinds=frozenset({StateKind.SLIDING_WINDOW}), page_sizes=(8,))
        base = [r for r in records(spec) if r.kind != "attention"]
        catalog = swap(base, record("attention", "f", full), record("attention", "w", window))
        with pytest.raises(ConfigError, match="w: page size 64 is not among 8"):
            resolve(settings(folder), catalog)

    def test_requires_hardware_of_the_manifest(self, folder: Path) -> None:
        extra = record("attention", "x", attention(), requires_hardware=("gpu",), capabilities={"priority": 1})
        catalog = swap(records(), extra)
        assert "needs gpu" in rejected(resolve(settings(folder), catalog).attention[0])["x"]
        with pytest.raises(ConfigError, match="needs gpu"):
            resolve(settings(folder, attention_backend="x"), catalog)

    def test_layers_without_attention(self, folder: Path) -> None:
        spec = make_spec(StateKind.FULL)
        spec = replace(spec, layers=(*spec.layers, LayerSpec(None)))
        assert resolve(settings(folder), swap(records(spec))).attention[0].name == "plain"

    def test_value_dimension_counts(self, folder: Path) -> None:
        odd = AttentionSpec(4, 2, 64, 1.0, v_head_dim=48)
        spec = replace(make_spec(), layers=(LayerSpec(odd),))
        only = record("attention", "plain", attention(head_dims=(64,)))
        with pytest.raises(ConfigError, match="head dimension 48"):
            resolve(settings(folder), swap(records(spec), only))


class TestQuantization:
    def test_recognised(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "q", quantization_config={"quant_method": "q4"})
        catalog = swap(records(), record("quant", "four", quant("q4")), record("quant", "eight", quant("q8")))
        choice = resolve(settings(folder), catalog).quant
        assert choice.name == "four"
        assert resolve(settings(folder), catalog).quant_config == {"quant_method": "q4"}
        assert "quant_method 'q4'" in choice.reason
        assert set(rejected(choice)) == {"eight", "none"}

    def test_nested(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "q", text_config={"quantization_config": {"quant_method": "q4"}})
        assert resolve(settings(folder), swap(records(), record("quant", "four", quant("q4")))).quant.name == "four"

    def test_unread_format(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "q", quantization_config={"quant_method": "q4"})
        with pytest.raises(CheckpointError, match="quant_method 'q4'") as caught:
            resolve(settings(folder), swap(records(), broken(record("quant", "four"), "no compiler")))
        assert "pip install" in (caught.value.hint or "")
        assert "four: no compiler" in caught.value.message

    def test_manifest_formats_spare_the_import(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "q", quantization_config={"quant_method": "q4"})
        skipped = record("quant", "eight", capabilities={"formats": ["q8"]})
        catalog = swap(records(), skipped, record("quant", "four", quant("q4"), capabilities={"formats": ["q4"]}))
        assert rejected(resolve(settings(folder), catalog).quant)["eight"] == "reads q8"

    def test_a_configuration_that_names_no_method_is_shown_to_all(self, tmp_path: Path) -> None:
        """As checkpoints of 2023 have it. A manifest's formats then rule nobody out."""

        class Old(quant()):  # type: ignore[misc]
            @classmethod
            def recognises(cls, config: Any) -> bool:
                return config is not None and bool(config.get("load_in_8bit"))

        folder = write_checkpoint(tmp_path / "q", quantization_config={"load_in_8bit": True})
        plain = record("quant", "none", quant_of_nothing(), capabilities={"formats": []})
        catalog = swap(records(), plain, record("quant", "old", Old, capabilities={"formats": ["q8"]}))
        assert resolve(settings(folder), catalog).quant.name == "old"

    def test_operator(self, tmp_path: Path, folder: Path) -> None:
        catalog = swap(records(), record("quant", "online", quant("q4")))
        assert resolve(settings(folder, quantization="online"), catalog).quant.reason == "asked for"
        quantized = write_checkpoint(tmp_path / "q", quantization_config={"quant_method": "q9"})
        with pytest.raises(ConfigError, match="does not read"):
            resolve(settings(quantized, quantization="online"), catalog)
        elsewhere = record("quant", "online", quant("q4"), requires_hardware=("gpu",))
        with pytest.raises(ConfigError, match="needs gpu"):
            resolve(settings(folder, quantization="online"), swap(records(), elsewhere))

    def test_two_recognise(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "q", quantization_config={"quant_method": "q4"})
        catalog = swap(
            records(),
            record("quant", "a", quant("q4")),
            record("quant", "b", quant("q4"), capabilities={"priority": 1}),
        )
        choice = resolve(settings(folder), catalog).quant
        assert choice.name == "b"
        assert "--quantization" in rejected(choice)["a"]
