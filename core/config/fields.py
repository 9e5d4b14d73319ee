"""The public surface of the settings, derived from the sections: names, flags, aliases, environment variables.

Field names are unique over all sections, so a flag or a variable needs no section. The command line, YAML,
environment, error texts and documentation all read this table.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic.fields import FieldInfo

from core.config.sections import Section, Settings

ENV_PREFIX = "CORE_"
PLUGIN_ENV_PREFIX = "CORE_PLUGINS__"
SECRET_FIELDS = frozenset({"admin_api_key", "api_key"})


@dataclass(frozen=True, slots=True)
class SettingField:
    """One setting.

    choices: allowed values of a Literal, else (). type_name: "integer" | "number" | "text" | "boolean" | "list".
    optional: None is allowed and means "decided from model and hardware", or "off".
    """

    section: str
    name: str
    aliases: tuple[str, ...]
    description: str
    default: Any
    type_name: str
    choices: tuple[str, ...]
    allowed: str
    optional: bool

    @property
    def dotted(self) -> str:
        """section.name"""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """--name-with-dashes"""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """CORE_NAME"""
        return ENV_PREFIX + self.name.upper()


@cache
def setting_fields() -> tuple[SettingField, ...]:
    """Every setting, in the order of the sections."""
    found = []
    for section, info in Settings.model_fields.items():
        model = info.annotation
        if isinstance(model, type) and issubclass(model, Section):
            found += [_field(section, name, sub) for name, sub in model.model_fields.items()]
    return tuple(found)


@cache
def by_name() -> dict[str, SettingField]:
    """Name or alias, with underscores -> field."""
    table: dict[str, SettingField] = {}
    for entry in setting_fields():
        for name in (entry.name, *entry.aliases):
            table[name.replace("-", "_")] = entry
    return table


def section_names() -> tuple[str, ...]:
    """Names of the sections, without `plugins`."""
    return tuple(dict.fromkeys(entry.section for entry in setting_fields()))


def nearest(name: str, known: typing.Iterable[str]) -> str | None:
    """The known name most like `name`, dashes and underscores being equal, or None if none is alike."""
    table = {other.replace("-", "_").lower(): other for other in known}
    close = difflib.get_close_matches(name.replace("-", "_").lower(), table, n=1, cutoff=0.6)
    return table[close[0]] if close else None


def nearest_setting(name: str) -> SettingField | None:
    """The setting whose name or alias is most like `name`."""
    close = nearest(name, by_name())
    return by_name()[close] if close else None


def _field(section: str, name: str, info: FieldInfo) -> SettingField:
    base, optional = _unwrap(info.annotation)
    choices = tuple(str(value) for value in typing.get_args(base)) if typing.get_origin(base) is Literal else ()
    type_name = "text" if choices else _type_name(base)
    extra = info.json_schema_extra
    aliases = tuple(str(a) for a in typing.cast(list, extra.get("aliases", []))) if isinstance(extra, dict) else ()
    return SettingField(
        section=section,
        name=name,
        aliases=aliases,
        description=info.description or "",
        default=info.get_default(call_default_factory=True),
        type_name=type_name,
        choices=choices,
        allowed=_allowed(type_name, choices, info),
        optional=optional,
    )


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """(T, True) for `T | None`, else (annotation, False)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return inner[0], True
    return annotation, False


def _type_name(base: Any) -> str:
    if typing.get_origin(base) is tuple:
        return "list"
    return {bool: "boolean", int: "integer", float: "number", str: "text"}[base]


def _allowed(type_name: str, choices: tuple[str, ...], info: FieldInfo) -> str:
    """What may be given, for people."""
    if choices:
        return "one of " + ", ".join(choices)
    words = {
        "boolean": "true or false",
        "list": "a list of texts",
        "integer": "an integer",
        "number": "a number",
        "text": "a text",
    }
    bounds = []
    for rule in info.metadata:
        for attribute, text in (("ge", "at least"), ("gt", "greater than"), ("le", "at most"), ("lt", "less than")):
            if hasattr(rule, attribute):
                bounds.append(f"{text} {getattr(rule, attribute)}")
    return ", ".join([words[type_name], *([" and ".join(bounds)] if bounds else [])])
