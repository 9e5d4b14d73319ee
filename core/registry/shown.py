"""The settings of plugins as `core config show` shows them: value, type, default and who decided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import ConfigError, PluginLoadError
from core.registry.options import MASK, Option, find_option, is_telling, load_model, options_of, validate
from core.registry.records import PluginRecord
from core.registry.sections import exactness, merged_section, section_names

if TYPE_CHECKING:
    from core.config.sections import Settings
    from core.registry.catalog import Catalog

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """name: "plugins.NAME.key". plugin: `distribution:name`, "" if none is installed that has it. type: "" if unknown.
    value, default: secrets are masked. source: who decided."""

    name: str
    plugin: str
    value: Any
    type: str
    default: Any
    source: str
    description: str = ""


def plugin_settings(settings: Settings, catalog: Catalog, *, all_plugins: bool) -> tuple[list[ShownSetting], list[str]]:
    """(settings, problems). Imports the settings models of plugins that have a section, or of all with `all_plugins`;
    never a plugin itself."""
    rows: list[ShownSetting] = []
    problems: list[str] = []
    shown: set[tuple[str, str]] = set()  # (section, key) that some plugin's model has
    for record in catalog.records:
        sections = [name for name in settings.plugins if exactness(record, name) is not None]
        if record.config is None or not (sections or all_plugins):
            continue
        try:
            rows += _of_plugin(record, settings, catalog, shown)
        except (ConfigError, PluginLoadError) as exc:
            problems.append(exc.message)
    rows += _unclaimed(settings, shown)
    return sorted(rows, key=lambda row: row.name), problems


def _of_plugin(
    record: PluginRecord, settings: Settings, catalog: Catalog, shown: set[tuple[str, str]]
) -> Iterator[ShownSetting]:
    options = options_of(load_model(record))
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    ranked = sorted((rank, n) for n in settings.plugins if (rank := exactness(record, n)) is not None)
    for _, section in ranked:
        for key, value in settings.plugins[section].items():
            option = find_option(key, options)
            if option is not None:
                given[option.name] = value
                sources[option.name] = settings.source(f"plugins.{section}.{key}") or "given"
                shown.add((section, key))
    own = {k: v for k, v in merged_section(record, settings.plugins).items() if find_option(k, options) is not None}
    values = validate(record, own, lambda key: _source(record, settings, key)).model_dump(mode="json")
    label = _label(record, catalog)
    for option in options:
        value = MASK if option.secret else values[option.name]
        default = MASK if option.secret and option.default is not None else _plain(option)
        yield ShownSetting(
            f"plugins.{label}.{option.name}",
            record.full_name,
            value,
            option.type,
            default,
            sources.get(option.name, DEFAULT),
            option.description,
        )


def _source(record: PluginRecord, settings: Settings, key: str) -> str:
    found = [n for n, values in settings.plugins.items() if key in values and exactness(record, n) is not None]
    return settings.source(f"plugins.{found[-1]}.{key}") if found else ""


def _label(record: PluginRecord, catalog: Catalog) -> str:
    """The shortest name of the plugin's section that belongs to it alone."""
    with_models = [r for r in catalog.records if r.config is not None]
    for name in section_names(record):
        if [r for r in with_models if exactness(r, name) is not None] == [record]:
            return name
    return section_names(record)[-1]


def _unclaimed(settings: Settings, shown: set[tuple[str, str]]) -> Iterator[ShownSetting]:
    """What is set and belongs to no installed plugin's model."""
    for section, values in settings.plugins.items():
        for key, value in values.items():
            if (section, key) not in shown:
                dotted = f"plugins.{section}.{key}"
                text = MASK if is_telling(key) else value
                yield ShownSetting(dotted, "", text, "", None, settings.source(dotted) or "given")


def _plain(option: Option) -> Any:
    """A default as JSON can show it."""
    default = option.default
    return default if isinstance(default, str | int | float | bool | list | dict | None) else str(default)
