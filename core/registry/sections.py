"""Which of the operator's plugin sections belongs to which plugin, and whether every key of them means something.

A section is called by the plugin's name; where that is not enough, by `distribution:name`, `kind/name` or
`kind/distribution:name`. The more exact name wins. Names that came through the environment (CORE_PLUGINS__NAME__KEY)
are compared as `core.config.names.fold` does.

The one rule for keys: each must be a setting of the model of a plugin that the section belongs to. A key that no chosen
plugin has is an error; one that only a plugin has that was not chosen, and a section of which no plugin was chosen, is
ignored with a warning, so that one file can serve several models and devices. Where no chosen plugin of a section names
a model, the section is handed over as it is, with a warning: nobody can tell who reads it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from core.config.names import fold
from core.interfaces.errors import ConfigError, PluginError
from core.registry.options import find_option, load_model, options_of, takes_anything, unknown_key, validate
from core.registry.records import PluginRecord

if TYPE_CHECKING:
    from core.config.sections import Settings
    from core.registry.catalog import Catalog


def section_names(record: PluginRecord) -> tuple[str, str, str, str]:
    """The names of a plugin's section, the most exact one last."""
    return (record.name, f"{record.kind}/{record.name}", record.full_name, f"{record.kind}/{record.full_name}")


def exactness(record: PluginRecord, section: str) -> int | None:
    """How exactly `section` names the plugin, higher is more exact; None if it does not."""
    names = section_names(record)
    if section in names:
        return names.index(section)
    kind, slash, rest = section.rpartition("/")
    if record.answers_to(rest) and (not slash or kind == record.kind):  # another spelling of the distribution
        return 3 if slash else 2
    return next((rank for rank, name in enumerate(names) if fold(name) == fold(section)), None)


def merged_section(record: PluginRecord, plugins: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All that is set for the plugin, the more exactly named section winning."""
    ranked = [(exactness(record, name), name) for name in plugins]
    out: dict[str, Any] = {}
    for _, name in sorted((rank, name) for rank, name in ranked if rank is not None):
        out.update(plugins[name])
    return out


class PluginSections:
    """The `plugins` part of the settings, seen together with what is installed.

    Raises ConfigError for a section that belongs to nothing installed, most often a misspelt name, and for one from
    the environment that may mean several plugins.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._owners = {name: self._find(name) for name in settings.plugins}

    def owners(self, section: str) -> tuple[PluginRecord, ...]:
        """Installed plugins that the section belongs to."""
        return self._owners[section]

    def check(self, chosen: Iterable[PluginRecord]) -> list[str]:
        """Validate the sections of all chosen plugins; returns warnings. Imports settings models only: of chosen
        plugins, and of others where that decides whether a key is known. Raises ConfigError, PluginLoadError."""
        records = list({id(record): record for record in chosen}.values())
        warnings = []
        for section in self._settings.plugins:
            warnings += self._check_section(section, {(r.kind, r.full_name) for r in records})
        for record in records:
            if record.config is not None:
                validate(record, self._keys_of(record), lambda key, r=record: self.source(r, key))  # type: ignore[misc]
        return warnings

    def exact(self, chosen: Iterable[PluginRecord]) -> dict[str, dict[str, Any]]:
        """Each chosen plugin's keys under the most exact name of its section; what `plugin_context` reads."""
        return {section_names(record)[3]: self._keys_of(record) for record in chosen}

    def source(self, record: PluginRecord, key: str) -> str:
        """Who decided a key of the plugin, as text; "" if it is not set."""
        ranked = [(exactness(record, name), name) for name, values in self._settings.plugins.items() if key in values]
        found = [(rank, name) for rank, name in ranked if rank is not None]
        return self._settings.source(f"plugins.{max(found)[1]}.{key}") if found else ""

    def _keys_of(self, record: PluginRecord) -> dict[str, Any]:
        """The plugin's own keys of the sections that it shares with others of its name."""
        merged = merged_section(record, self._settings.plugins)
        if record.config is None or not merged:
            return merged
        model = load_model(record)
        options = options_of(model)
        return {k: v for k, v in merged.items() if takes_anything(model) or find_option(k, options) is not None}

    def _check_section(self, section: str, chosen: set[tuple[str, str]]) -> list[str]:
        owners = self._owners[section]
        used = [record for record in owners if (record.kind, record.full_name) in chosen]
        values = self._settings.plugins[section]
        if not used:
            return [
                f"plugins.{section} has settings ({self._sources(section)}), but that plugin was not chosen: ignored"
            ]
        warnings = []
        for key, value in values.items():
            if any(_has_key(record, key) for record in used):
                continue
            if any(_has_key_quietly(record, key) for record in owners if record not in used):
                warnings.append(
                    f"plugins.{section}.{key} is set ({self._source_of(section, key)}), but the plugin that has this "
                    "setting was not chosen: ignored"
                )
                continue
            source = self._source_of(section, key)
            with_model = next((record for record in used if record.config is not None), None)
            if with_model is not None:
                raise unknown_key(with_model, key, value, source, options_of(load_model(with_model)))
            warnings.append(
                f"plugins.{section}.{key} is set ({source}), and {used[0].title} names no model of its settings: it is "
                "handed over unchecked"
            )
        return warnings

    def _source_of(self, section: str, key: str) -> str:
        return self._settings.source(f"plugins.{section}.{key}") or "given"

    def _sources(self, section: str) -> str:
        return ", ".join(dict.fromkeys(self._source_of(section, key) for key in self._settings.plugins[section]))

    def _find(self, section: str) -> tuple[PluginRecord, ...]:
        records = self._catalog.records
        found = tuple(record for record in records if section in section_names(record) or record.answers_to(section))
        found = found or tuple(record for record in records if exactness(record, section) is not None)
        if len({fold(record.name) for record in found}) < len({record.name for record in found}):
            names = " or ".join(sorted({record.name for record in found}))
            raise ConfigError(
                f"plugins.{section} ({self._sources(section)}) may mean {names}",
                field=f"plugins.{section}",
                hint="use --set or a file, where names can be written as they are",
            )
        if found:
            return found
        installed = sorted({record.name for record in records})
        close = difflib.get_close_matches(section, installed, n=1)
        raise ConfigError(
            f"plugins.{section} has settings ({self._sources(section)}), but no installed plugin is called {section!r}",
            field=f"plugins.{section}",
            hint=f"did you mean {close[0]!r}?" if close else "`core plugins list` shows the names",
        )


def _has_key(record: PluginRecord, key: str) -> bool:
    if record.config is None:
        return False
    model = load_model(record)
    return takes_anything(model) or find_option(key, options_of(model)) is not None


def _has_key_quietly(record: PluginRecord, key: str) -> bool:
    """`_has_key` of a plugin that was not chosen: that its model is broken is of no concern."""
    try:
        return record.state == "available" and _has_key(record, key)
    except PluginError:
        return False
