"""load_settings: flags over environment over YAML over defaults, and who decided each field.

Environment: `CORE_` plus the field's name in capitals, e.g. CORE_MAX_RUNNING_REQUESTS; lists are separated by
commas. CORE_CONFIG names a YAML file where none is given. A plugin's own settings are
CORE_PLUGINS__NAME__KEY=value, where what is no letter or digit in NAME is "_" and ":" is "__" (`plugin-a:fast-attn`
is PLUGIN_A__FAST_ATTN).
YAML: sections (`cache: {page_size: 16}`) or flat names (`page_size: 16`), and `plugins: {name: {key: value}}`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from core.config.fields import (
    ENV_PREFIX,
    PLUGIN_ENV_PREFIX,
    SECRET_FIELDS,
    SettingField,
    by_name,
    nearest,
    nearest_setting,
    section_names,
    setting_fields,
)
from core.config.names import fold
from core.config.sections import Settings
from core.interfaces.errors import ConfigError

DEFAULT = "default"
# Variables that are read elsewhere, or that a front end to this function reads.
OTHER_VARIABLES = frozenset({"CORE_CONFIG", "CORE_DEBUG"})


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings and, by dotted name, who decided: "default", "flag --x", "environment CORE_X", "file PATH".

    Only fields whose source is not "default" are in `model_fields_set` of their section.
    """

    settings: Settings
    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, dotted: str) -> str:
        """Who decided `section.name` or `plugins.NAME.key`."""
        return self.sources.get(dotted, DEFAULT)

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted name, value, source) of every setting but those of plugins; secrets are masked."""
        rows = []
        for entry in setting_fields():
            value = getattr(getattr(self.settings, entry.section), entry.name)
            if entry.name in SECRET_FIELDS and value is not None:
                value = "***"
            rows.append((entry.dotted, value, self.source(entry.dotted)))
        return rows


@dataclass(slots=True)
class _Given:
    """One value and where it came from."""

    value: Any
    source: str


class _Layers:
    """Values collected so far; later sources overwrite earlier ones."""

    def __init__(self) -> None:
        self.values: dict[str, _Given] = {}
        self.plugins: dict[tuple[str, str], _Given] = {}
        self._folded: set[str] = set()  # section names that came through the environment

    def put(self, entry: SettingField, value: Any, source: str) -> None:
        self.values[entry.dotted] = _Given(_normal(entry, value), source)

    def put_plugin(self, name: str, key: str, value: Any, source: str) -> None:
        """A variable's name was folded (see `fold`): where a file or a flag writes a name that folds to it, that is
        the name."""
        folded = fold(name)
        if folded in self._folded and name != folded:
            self._folded.discard(folded)
            self.plugins = {(name if n == folded else n, k): given for (n, k), given in self.plugins.items()}
        same = [k for n, k in self.plugins if n == name and fold(k) == fold(key)]
        self.plugins[(name, same[0] if same else key)] = _Given(value, source)

    def put_variable(self, name: str, key: str, value: Any, source: str) -> None:
        """One of a plugin's settings from the environment."""
        written = {n for n, _ in self.plugins if fold(n) == name}
        if len(written) == 1:
            name = written.pop()
        else:
            self._folded.add(name)
        self.put_plugin(name, key, value, source)


def load_settings(
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    yaml_path: str | Path | None = None,
    *,
    plugin_flags: Iterable[str] = (),
    origin: Literal["flag", "argument"] = "flag",
) -> ResolvedSettings:
    """Merge all sources and check every value.

    flags: name or alias -> value (dashes or underscores); only those that were given. `plugins` may hold a mapping
        of mappings. env: usually os.environ. yaml_path: `--config`.
    plugin_flags: texts "NAME.key=value" (`--set`). origin: how `flags` are called in errors and sources;
        "argument" where Python code passes them.
    Raises ConfigError naming field, value, source and what is allowed; for an unknown name, the nearest one.
    """
    layers = _Layers()
    env = env or {}
    path = yaml_path if yaml_path is not None else env.get("CORE_CONFIG") or None
    if path is not None:
        _read_yaml(Path(path).expanduser(), layers)
    _read_env(env, layers)
    _read_flags(flags or {}, layers, origin)
    for text in plugin_flags:
        name, key, value = parse_plugin_flag(text)
        layers.put_plugin(name, key, value, "flag --set")
    return _build(layers)


def parse_plugin_flag(text: str) -> tuple[str, str, Any]:
    """ "NAME.key=value" -> (name, key, value); the value is read as a YAML scalar. Raises ConfigError."""
    head, equals, value = text.partition("=")
    name, dot, key = head.strip().rpartition(".")
    if not (equals and dot and name and key):
        raise ConfigError(
            f"--set is {text!r}; it must be NAME.key=value",
            field="plugins",
            value=text,
            hint="e.g. --set fast.splits=4",
        )
    return name, key, _yaml_value(value, f"--set {name}.{key}")


def _read_flags(flags: Mapping[str, Any], layers: _Layers, origin: str) -> None:
    for given, value in flags.items():
        name = given.removeprefix("--").replace("-", "_")
        label = f"flag --{name.replace('_', '-')}" if origin == "flag" else f"argument {name}"
        if name == "plugins" and isinstance(value, Mapping):
            for plugin, section in value.items():
                for key, item in section.items():
                    layers.put_plugin(plugin, key, item, label)
            continue
        entry = by_name().get(name)
        if entry is None:
            shown = f"--{name.replace('_', '-')}" if origin == "flag" else name
            raise _unknown(shown, value, label, origin)
        layers.put(entry, value, label)


def _read_env(env: Mapping[str, str], layers: _Layers) -> None:
    names = {entry.env: entry for entry in setting_fields()}
    for variable, text in env.items():
        if not variable.startswith(ENV_PREFIX) or variable in OTHER_VARIABLES:
            continue
        if variable.startswith(PLUGIN_ENV_PREFIX):
            name, _, key = variable.removeprefix(PLUGIN_ENV_PREFIX).lower().rpartition("__")
            if not name or not key:
                raise ConfigError(
                    f"environment variable {variable} names no plugin setting",
                    field="plugins",
                    value=text,
                    hint="it must be CORE_PLUGINS__NAME__KEY",
                )
            layers.put_variable(name, key, _yaml_value(text, variable), f"environment {variable}")
            continue
        if variable in names:
            layers.put(names[variable], text, f"environment {variable}")
            continue
        close = nearest(variable, names)
        # Other programs may own variables that begin like ours; only one that looks misspelt is an error.
        if close is not None and difflib.SequenceMatcher(None, variable, close).ratio() >= 0.85:
            raise ConfigError(
                f"environment variable {variable}={text!r} is no setting",
                field=variable,
                value=text,
                hint=f"did you mean {close}?",
            )


def _read_yaml(path: Path, layers: _Layers) -> None:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"configuration file {path} cannot be read: {exc}", field="config", value=str(path), hint="check --config"
        ) from exc
    except yaml.YAMLError as exc:
        raise ConfigError(
            f"configuration file {path} is not valid YAML: {exc}", field="config", value=str(path)
        ) from exc
    if data is None:
        return
    if not isinstance(data, dict):
        raise ConfigError(
            f"configuration file {path} holds a {type(data).__name__}; it must be a mapping", field="config", value=data
        )
    source = f"file {path}"
    sections = section_names()
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name == "plugins":
            _yaml_plugins(value, path, layers)
        elif name in sections and (isinstance(value, dict) or value is None):
            for sub, item in (value or {}).items():
                sub_name = str(sub).replace("-", "_")
                entry = by_name().get(sub_name)
                if entry is None or entry.section != name:
                    raise _unknown(f"{name}.{sub_name}", item, source, "file", section=name)
                layers.put(entry, item, source)
        elif name in by_name():
            layers.put(by_name()[name], value, source)
        else:
            raise _unknown(str(key), value, source, "file")


def _yaml_plugins(value: Any, path: Path, layers: _Layers) -> None:
    for name, section in (value or {}).items() if isinstance(value, dict | None) else [("", value)]:
        if not isinstance(section, dict):
            raise ConfigError(
                f"plugins{'.' + str(name) if name else ''} is {section!r} in file {path}; it must be a mapping",
                field="plugins",
                value=section,
                hint="plugins: {NAME: {key: value}}",
            )
        for key, item in section.items():
            layers.put_plugin(str(name), str(key), item, f"file {path}")


def _yaml_value(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        # Without the value, which may be a secret.
        why = getattr(exc, "problem", None) or type(exc).__name__
        raise ConfigError(
            f"{where}: the value is not valid YAML: {why}", field="plugins", hint="put it in quotes to have it as text"
        ) from None


def _normal(entry: SettingField, value: Any) -> Any:
    """Spellings that mean the same: YAML reads a bare `on` as true, and lists come as comma-separated text."""
    if isinstance(value, bool) and {"on", "off"} <= set(entry.choices):
        return "on" if value else "off"
    if entry.type_name == "list":
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(part.strip() for item in items for part in item.split(",") if part.strip())
    return value


def _build(layers: _Layers) -> ResolvedSettings:
    by_section: dict[str, dict[str, Any]] = {name: {} for name in section_names()}
    for dotted, given in layers.values.items():
        section, _, name = dotted.partition(".")
        by_section[section][name] = given.value
    _disable_radix_cache(by_section["cache"], layers)
    models: dict[str, Any] = {}
    for section, values in by_section.items():
        model = Settings.model_fields[section].annotation
        assert model is not None
        try:
            models[section] = model(**values)
        except ValidationError as exc:
            raise _invalid(section, exc, layers) from exc
    plugins: dict[str, dict[str, Any]] = {}
    sources = {dotted: given.source for dotted, given in layers.values.items()}
    for (name, key), given in layers.plugins.items():
        plugins.setdefault(name, {})[key] = given.value
        sources[f"plugins.{name}.{key}"] = given.source
    settings = Settings(**models, plugins=plugins)
    settings._sources.update(sources)
    return ResolvedSettings(settings, MappingProxyType(sources))


def _disable_radix_cache(cache: dict[str, Any], layers: _Layers) -> None:
    """disable_radix_cache is another spelling of `prefix_cache: none`; both, saying different things, is an error."""
    disable = layers.values.get("cache.disable_radix_cache")
    if disable is None or str(disable.value).lower() not in ("true", "1", "yes", "on", "t", "y"):
        return
    explicit = layers.values.get("cache.prefix_cache")
    if explicit is not None and explicit.value != "none":
        raise ConfigError(
            f"disable_radix_cache is set ({disable.source}), "
            f"but prefix_cache is {explicit.value!r} ({explicit.source})",
            field="cache.disable_radix_cache",
            value=True,
            hint="leave one of them out",
        )
    layers.values["cache.prefix_cache"] = _Given("none", explicit.source if explicit else disable.source)
    cache["prefix_cache"] = "none"


def _invalid(section: str, exc: ValidationError, layers: _Layers) -> ConfigError:
    error = exc.errors()[0]
    name = str(error["loc"][0]) if error["loc"] else ""
    dotted = f"{section}.{name}"
    entry = by_name()[name]
    given = layers.values[dotted]
    shown = "***" if name in SECRET_FIELDS else repr(given.value)
    default = "" if "Default" in entry.description or entry.default is None else f" Default: {entry.default}."
    return ConfigError(
        f"{name} is {shown} ({given.source}); it must be {entry.allowed}",
        field=dotted,
        value=given.value,
        hint=entry.description + default,
    )


def _unknown(name: str, value: Any, source: str, origin: str, section: str | None = None) -> ConfigError:
    entry = nearest_setting(name.removeprefix("--").rpartition(".")[2])
    hint = "`core config show` lists every setting"
    if entry is not None:
        if origin == "flag":
            hint = f"did you mean {entry.flag}?"
        elif section is not None or origin == "file":
            hint = f"did you mean {entry.name} (section {entry.section})?"
        else:
            hint = f"did you mean {entry.name}?"
    return ConfigError(f"unknown setting {name} = {value!r} ({source})", field=name, value=value, hint=hint)
