"""load_settings: precedence, provenance, and errors that name field, value, source and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.fields import setting_fields
from core.config.loading import DEFAULT, load_settings, parse_plugin_flag
from core.config.sections import Settings
from core.interfaces.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(text: str) -> Path:
        path = tmp_path / "core.yaml"
        path.write_text(text)
        return path

    return make


def test_nothing_given_is_the_default() -> None:
    resolved = load_settings()
    assert resolved.settings == Settings()
    assert {source for _, _, source in resolved.rows()} == {DEFAULT}
    assert not resolved.settings.cache.model_fields_set


@given(layers=st.sets(st.sampled_from(["yaml", "env", "flag"])))
def test_flags_over_environment_over_file_over_default(layers: set[str], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text("max_running_requests: 11" if "yaml" in layers else "")
    env = {"CORE_MAX_RUNNING_REQUESTS": "22"} if "env" in layers else {}
    flags = {"max-running-requests": "33"} if "flag" in layers else {}
    resolved = load_settings(flags, env, path)
    expected = (
        (33, "flag --max-running-requests") if "flag" in layers
        else (22, "environment CORE_MAX_RUNNING_REQUESTS") if "env" in layers
        else (11, f"file {path}") if "yaml" in layers
        else (256, DEFAULT)
    )  # fmt: skip
    value = resolved.settings.scheduler.max_running_requests
    assert (value, resolved.source("scheduler.max_running_requests")) == expected
    assert bool(resolved.settings.scheduler.model_fields_set) == bool(layers)


@pytest.mark.parametrize("name", ["max_num_seqs", "max-num-seqs", "--max-num-seqs", "max_running_requests"])
def test_aliases_and_spellings(name: str) -> None:
    resolved = load_settings({name: 5})
    assert resolved.settings.scheduler.max_running_requests == 5
    assert resolved.source("scheduler.max_running_requests").startswith("flag --max-")


def test_yaml_sections_flat_names_and_aliases(write: Any) -> None:
    path = write(
        "cache: {page_size: 8, mem-fraction-static: 0.5}\nmodel: somewhere\nport: 1\nscheduler:\n"
        "plugins:\n  fast: {splits: 4}\n"
    )
    resolved = load_settings(yaml_path=path)
    assert resolved.settings.cache.page_size == 8
    assert resolved.settings.cache.memory_fraction == 0.5
    assert resolved.settings.model.model == "somewhere"
    assert resolved.settings.server.port == 1
    assert resolved.settings.plugins == {"fast": {"splits": 4}}
    assert resolved.source("plugins.fast.splits") == f"file {path}"


def test_model_is_a_section_or_a_value(write: Any) -> None:
    assert load_settings(yaml_path=write("model: {model: x, dtype: float32}")).settings.model.model == "x"
    assert load_settings(yaml_path=write("model: x")).settings.model.model == "x"


def test_yaml_null_is_an_explicit_none(write: Any) -> None:
    resolved = load_settings({}, {"CORE_CONFIG": str(write("page_size: null"))})
    assert resolved.settings.cache.page_size is None
    assert "page_size" in resolved.settings.cache.model_fields_set


def test_yaml_on_is_the_word_on(write: Any) -> None:
    assert load_settings(yaml_path=write("overlap: on")).settings.engine.overlap == "on"
    assert load_settings(yaml_path=write("overlap: off")).settings.engine.overlap == "off"


def test_lists() -> None:
    assert load_settings({"cors_allow_origins": ("a,b", "c")}).settings.server.cors_allow_origins == ("a", "b", "c")
    assert load_settings({}, {"CORE_CORS_ALLOW_ORIGINS": "a, b"}).settings.server.cors_allow_origins == ("a", "b")


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", "on"])
def test_booleans_of_the_environment(text: str) -> None:
    assert load_settings({}, {"CORE_TRUST_REMOTE_CODE": text}).settings.model.trust_remote_code is True


@pytest.mark.parametrize(
    ("flags", "env", "parts"),
    [
        ({"page_size": "0"}, {}, ("page_size is '0'", "flag --page-size", "at least 1 and at most 1024")),
        ({"page_size": "x"}, {}, ("page_size is 'x'", "an integer")),
        ({}, {"CORE_PORT": "99999"}, ("port is '99999'", "environment CORE_PORT", "at most 65535")),
        ({"dtype": "int4"}, {}, ("dtype is 'int4'", "one of auto, float32, bfloat16, float16")),
        ({"memory_fraction": 0}, {}, ("memory_fraction is 0", "greater than 0 and at most 1")),
        ({"trust_remote_code": "maybe"}, {}, ("trust_remote_code is 'maybe'", "true or false")),
    ],
)
def test_wrong_values(flags: dict[str, Any], env: dict[str, str], parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, env)
    for part in parts:
        assert part in caught.value.message
    assert caught.value.field.rpartition(".")[2] in caught.value.message
    assert caught.value.hint


def test_wrong_value_in_a_file_names_the_file(write: Any) -> None:
    path = write("cache: {eviction_policy: best}")
    with pytest.raises(ConfigError) as caught:
        load_settings(yaml_path=path)
    assert str(path) in caught.value.message
    assert "lru, lfu, fifo, priority" in caught.value.message


def test_argument_origin_speaks_python() -> None:
    with pytest.raises(ConfigError, match="argument page_size") as caught:
        load_settings({"page_size": 0}, origin="argument")
    assert caught.value.value == 0
    with pytest.raises(ConfigError, match="did you mean page_size") as caught:
        load_settings({"pagesize": 1}, origin="argument")
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "suggested"),
    [("page-sise", "--page-size"), ("max-num-sqs", "--max-running-requests"), ("attention_backends", "--attention-b")],
)
def test_unknown_flag_suggests_the_nearest(given: str, suggested: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        load_settings({given: 1})
    assert suggested in (caught.value.hint or "")


def test_unknown_key_in_a_file(write: Any) -> None:
    with pytest.raises(ConfigError, match=r"cache\.page_sise") as caught:
        load_settings(yaml_path=write("cache: {page_sise: 1}"))
    assert "page_size (section cache)" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="did you mean") as caught:
        load_settings(yaml_path=write("server: {page_size: 1}"))  # right name, wrong section
    assert "section cache" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="unknown setting zzzzzz"):
        load_settings(yaml_path=write("zzzzzz: 1"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("plugins: 3", "must be a mapping"),
        ("plugins: {x: 3}", "must be a mapping"),
    ],
)
def test_unusable_files(write: Any, text: str, match: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError, match=match) as caught:
        load_settings(yaml_path=path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_settings(yaml_path=tmp_path / "nothing.yaml")


def test_environment_of_others_is_left_alone_but_misspellings_are_not() -> None:
    assert load_settings({}, {"CORE_PATTERN": "x", "CORE_DEBUG": "1", "HOME": "/"}).settings == Settings()
    with pytest.raises(ConfigError, match="CORE_PAGE_SISE") as caught:
        load_settings({}, {"CORE_PAGE_SISE": "8"})
    assert caught.value.hint == "did you mean CORE_PAGE_SIZE?"


def test_plugin_settings_from_every_source(write: Any) -> None:
    path = write("plugins: {fast: {a: 1, b: 1, c: 1}}")
    env = {"CORE_PLUGINS__FAST__B": "2", "CORE_PLUGINS__FAST__C": "2"}
    resolved = load_settings({}, env, path, plugin_flags=["fast.c=3", "dist.x:fast.d=true"])
    assert resolved.settings.plugins == {"fast": {"a": 1, "b": 2, "c": 3}, "dist.x:fast": {"d": True}}
    assert resolved.source("plugins.fast.b") == "environment CORE_PLUGINS__FAST__B"
    assert resolved.source("plugins.fast.c") == "flag --set"
    by_argument = load_settings({"plugins": {"fast": {"a": 1}}}, origin="argument")
    assert by_argument.source("plugins.fast.a") == "argument plugins"


@pytest.mark.parametrize("text", ["", "a", "a=1", "a.b", ".b=1", "a.=1"])
def test_bad_set(text: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME\.key=value"):
        parse_plugin_flag(text)


def test_bad_plugin_variable() -> None:
    with pytest.raises(ConfigError, match="CORE_PLUGINS__FAST"):
        load_settings({}, {"CORE_PLUGINS__FAST": "1"})


def test_disable_radix_cache(write: Any) -> None:
    resolved = load_settings({"no-enable-prefix-caching": True})
    assert resolved.settings.cache.prefix_cache == "none"
    assert resolved.source("cache.prefix_cache") == "flag --no-enable-prefix-caching"
    assert load_settings({"disable_radix_cache": False, "prefix_cache": "radix"}).settings.cache.prefix_cache == "radix"
    assert load_settings({"disable_radix_cache": True, "prefix_cache": "none"}).settings.cache.disable_radix_cache
    with pytest.raises(ConfigError, match="leave one") as caught:
        load_settings({"prefix_cache": "radix"}, {}, write("disable_radix_cache: true"))
    assert "flag --prefix-cache" in caught.value.message
    assert "file " in caught.value.message


def test_secrets_are_masked() -> None:
    resolved = load_settings({"api_key": "s3cret"})
    assert resolved.settings.server.api_key == "s3cret"
    assert "s3cret" not in repr(resolved.rows())
    with pytest.raises(ConfigError) as caught:
        load_settings({"api_key": ["s3cret"]})
    assert "s3cret" not in str(caught.value)


@given(field=st.sampled_from(setting_fields()), text=st.text(max_size=8))
def test_any_text_gives_a_setting_or_a_config_error(field: Any, text: str) -> None:
    error = None
    try:
        resolved = load_settings({}, {field.env: text})
    except ConfigError as exc:
        error = exc
    if error is not None:
        assert field.name in error.message
    else:
        assert resolved.source(field.dotted) == f"environment {field.env}"


def test_a_variable_means_the_section_whose_name_folds_to_it(write: Any) -> None:
    path = write("plugins: {fast-attn: {num-splits: 1, other: 2}}")
    env = {"CORE_PLUGINS__FAST_ATTN__NUM_SPLITS": "3"}
    resolved = load_settings({}, env, path)
    assert resolved.settings.plugins == {"fast-attn": {"num-splits": 3, "other": 2}}
    assert resolved.source("plugins.fast-attn.num-splits") == "environment CORE_PLUGINS__FAST_ATTN__NUM_SPLITS"
    assert resolved.settings.source("plugins.fast-attn.other") == f"file {path}"
    by_flag = load_settings({}, env, plugin_flags=["fast.attn.num_splits=4"])
    assert by_flag.settings.plugins == {"fast.attn": {"num_splits": 4}}
    both = load_settings({}, env, write("plugins: {fast-attn: {a: 1}, fast.attn: {a: 2}}")).settings.plugins
    assert both["fast_attn"] == {"num_splits": 3}  # which one is meant is decided, or refused, where plugins are known


def test_a_value_that_is_no_yaml_is_not_shown() -> None:
    for source in ({"plugin_flags": ["fast.word={s3cret"]}, {"env": {"CORE_PLUGINS__FAST__WORD": "{s3cret"}}):
        with pytest.raises(ConfigError, match=r"not valid YAML") as caught:
            load_settings(**source)  # type: ignore[arg-type]
        assert "s3cret" not in f"{caught.value} {caught.value.value}"
