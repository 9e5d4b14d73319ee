"""Settings of plugins: whose they are, that every key means something, and that a secret is never shown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_fakes import MakeDist, attention, hardware, record, records, settings, swap, write_checkpoint

from core.config.loading import load_settings
from core.config.names import fold
from core.interfaces.errors import ConfigError, PluginLoadError
from core.registry import Catalog, plugin_context
from core.registry.options import load_model, options_of
from core.registry.resolve import resolve

OPTIONS = """
from pydantic import BaseModel, Field, SecretStr
class Options(BaseModel):
    splits: int = Field(2, ge=1, description="Splits of a row.")
    word: SecretStr = SecretStr("inner")
    keys: dict[str, SecretStr] = {}
class Needy(BaseModel):
    path: str
class Rule(BaseModel):
    low: int = 1
    from pydantic import model_validator
    @model_validator(mode="after")
    def _check(self):
        if self.low > 5:
            raise ValueError("low is too high")
        return self
class Open(BaseModel):
    model_config = {"extra": "allow"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


@pytest.fixture
def catalog(make_dist: MakeDist) -> Catalog:
    """`plain` attention is chosen and has Options; `spare` is not and has Needy; the device has no model."""
    make_dist("plugin-o", {}, None, OPTIONS)
    return swap(
        records(),
        record("attention", "plain", attention(), config="plugin_o:Options", capabilities={"priority": 1}),
        record("attention", "spare", attention(), config="plugin_o:Needy"),
    )


def test_wrong_value_stops_before_anything_is_built_naming_its_source(folder: Path, catalog: Catalog) -> None:
    for resolved, source in (
        (load_settings({"model": str(folder)}, plugin_flags=["plain.splits=no"]), "flag --set"),
        (load_settings({"model": str(folder)}, {"CORE_PLUGINS__PLAIN__SPLITS": "no"}), "environment CORE_PLUGINS__"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(resolved.settings, catalog)
        assert f"plugins.plain.splits is {resolved.settings.plugins['plain']['splits']!r} ({source}" in str(
            caught.value
        )
        assert "settings of plain: splits (int, default 2)" in (caught.value.hint or "")
        assert caught.value.field == "plugins.plain.splits"


def test_wrong_value_in_a_file(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {folder}\nplugins: {{plain: {{splits: 0}}}}\n")
    with pytest.raises(ConfigError, match="greater than or equal to 1") as caught:
        resolve(load_settings(yaml_path=path).settings, catalog)
    assert f"(file {path})" in caught.value.message


def test_chosen_plugin_gets_its_settings(folder: Path, catalog: Catalog) -> None:
    resolution = resolve(settings(folder, plugins={"plain": {"splits": "4"}}), catalog)
    (choice,) = resolution.attention
    assert choice.record is not None
    assert plugin_context(choice.record, resolution.plugin_settings).settings.splits == 4


def test_unknown_key_is_an_error_even_where_the_model_would_drop_it(folder: Path, catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match="has no such setting") as caught:
        resolve(settings(folder, plugins={"plain": {"split": 4}}), catalog)
    assert "did you mean 'splits'?" in (caught.value.hint or "")


def test_plugin_without_a_model_gets_its_section_unchecked_with_a_warning(folder: Path, catalog: Catalog) -> None:
    resolution = resolve(settings(folder, plugins={"host": {"speed": 1}}), catalog)
    assert resolution.plugin_settings["hardware/dummy:host"] == {"speed": 1}
    (warning,) = resolution.warnings
    assert "plugins.host.speed is set (argument plugins), and hardware plugin 'host'" in warning
    assert "names no model of its settings" in warning


def test_section_of_a_plugin_that_was_not_chosen_is_ignored_with_a_warning(
    folder: Path, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "core.registry"):
        resolution = resolve(settings(folder, plugins={"spare": {"path": 3}}), catalog)
    (warning,) = resolution.warnings
    assert "plugins.spare has settings (argument plugins), but that plugin was not chosen: ignored" in warning
    assert warning in caplog.text


def test_required_setting_of_a_chosen_plugin(folder: Path, catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.spare\.path is not set, and .* needs it"):
        resolve(settings(folder, attention_backend="spare"), catalog)
    with_path = settings(folder, attention_backend="spare", plugins={"spare": {"path": "p"}})
    assert resolve(with_path, catalog).attention[0].name == "spare"


def test_one_name_of_two_kinds_shares_a_section_key_by_key(folder: Path, catalog: Catalog) -> None:
    shared = swap(list(catalog.records), record("moe", "plain", object(), config="plugin_o:Rule"))
    both = resolve(settings(folder, plugins={"plain": {"splits": 3, "low": 4}}), shared)
    assert both.plugin_settings["attention/dummy:plain"] == {"splits": 3}
    assert both.plugin_settings["moe/dummy:plain"] == {"low": 4}
    exact = resolve(settings(folder, plugins={"plain": {"splits": 3}, "attention/plain": {"splits": 5}}), shared)
    assert exact.plugin_settings["attention/dummy:plain"] == {"splits": 5}
    with pytest.raises(ConfigError, match="low is too high"):
        resolve(settings(folder, plugins={"moe/plain": {"low": 9}}), shared)


def test_key_that_only_an_unchosen_namesake_has(folder: Path, catalog: Catalog) -> None:
    namesake = swap(
        [r for r in catalog.records if r.kind != "moe"],
        record("moe", "plain", object(), config="plugin_o:Rule"),
        record("moe", "better", object(), capabilities={"priority": 1}),
    )
    (warning,) = resolve(settings(folder, plugins={"plain": {"low": 2}}), namesake).warnings
    assert "plugins.plain.low" in warning
    assert "not chosen: ignored" in warning


def test_model_that_takes_anything(folder: Path, catalog: Catalog) -> None:
    anything = swap(list(catalog.records), record("hardware", "host", hardware(), config="plugin_o:Open"))
    resolution = resolve(settings(folder, plugins={"host": {"what": 1}}), anything)
    assert resolution.plugin_settings["hardware/dummy:host"] == {"what": 1}


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("fast-attn", "CORE_PLUGINS__FAST_ATTN__SPLITS"),
        ("FastAttn", "CORE_PLUGINS__FASTATTN__SPLITS"),
        ("fast.attn", "CORE_PLUGINS__DUMMY__FAST_ATTN__SPLITS"),
        ("fast attn", "CORE_PLUGINS__ATTENTION__FAST_ATTN__SPLITS"),
    ],
)
def test_names_that_do_not_fit_a_variable(folder: Path, catalog: Catalog, name: str, variable: str) -> None:
    odd = swap(
        list(catalog.records),
        record("attention", name, attention(), config="plugin_o:Options", capabilities={"priority": 9}),
    )
    resolved = load_settings({"model": str(folder)}, {variable: "7"})
    assert resolve(resolved.settings, odd).plugin_settings[f"attention/dummy:{name}"] == {"splits": 7}


def test_variable_that_may_mean_two_plugins(folder: Path, catalog: Catalog) -> None:
    twins = swap(
        list(catalog.records), record("attention", "a-b", attention()), record("attention", "a.b", attention())
    )
    resolved = load_settings({"model": str(folder)}, {"CORE_PLUGINS__A_B__SPLITS": "7"})
    with pytest.raises(ConfigError, match=r"may mean a-b or a\.b"):
        resolve(resolved.settings, twins)


class TestSecrets:
    @pytest.mark.parametrize("value", [["s3cret"], {"k": ["s3cret"]}])
    def test_never_in_an_error(self, folder: Path, catalog: Catalog, value: Any) -> None:
        for key in ("word", "keys"):
            with pytest.raises(ConfigError) as caught:
                resolve(settings(folder, plugins={"plain": {key: value}}), catalog)
            assert f"plugins.plain.{key}" in str(caught.value)
            assert "s3cret" not in f"{caught.value} {caught.value.value} {caught.value.__cause__}"

    def test_another_fields_error_does_not_show_it(self, folder: Path, catalog: Catalog) -> None:
        with pytest.raises(ConfigError) as caught:
            resolve(settings(folder, plugins={"plain": {"word": "s3cret", "splits": "x"}}), catalog)
        assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"

    def test_unknown_key_that_sounds_like_one(self, folder: Path, catalog: Catalog) -> None:
        assert "s3cret" not in str(resolve(settings(folder, plugins={"host": {"token": "s3cret"}}), catalog).warnings)
        with pytest.raises(ConfigError) as caught:
            resolve(settings(folder, plugins={"plain": {"auth_token": "s3cret"}}), catalog)
        assert "s3cret" not in f"{caught.value} {caught.value.value}"

    def test_the_plugin_gets_it(self, catalog: Catalog) -> None:
        own = catalog.record("attention", "plain")
        context = plugin_context(own, {"plain": {"word": "s3cret"}})
        assert context.settings.word.get_secret_value() == "s3cret"
        assert "s3cret" not in repr(context)


def test_options_are_described(catalog: Catalog) -> None:
    splits, word, keys = options_of(load_model(catalog.record("attention", "plain")))
    assert (splits.type, splits.default, splits.description, splits.secret) == ("int", 2, "Splits of a row.", False)
    assert word.secret
    assert keys.secret


def test_settings_model_that_is_none(make_dist: MakeDist) -> None:
    make_dist("plugin-o", {}, None, "Options = 3\nraise SystemExit(4)")
    with pytest.raises(PluginLoadError, match="SystemExit"):
        load_model(record("moe", "x", config="plugin_o:Options"))
    assert "plugin_o" not in sys.modules


@given(name=st.text(max_size=12), other=st.text(max_size=12))
def test_folding_is_what_a_variable_can_carry(name: str, other: str) -> None:
    assert fold(fold(name)) == fold(name)
    assert fold(name) == fold(name.upper()) or not name.isascii()
    assert fold(f"{name}:{other}") == f"{fold(name)}__{fold(other)}"
    assert set(fold(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
