"""A plugin's own settings: its pydantic model, described and applied.

The model is imported from the target that the manifest names (`config = "module:Model"`). Keys are matched as they are
written, else without regard to case and to what is no letter or digit, since environment variables know neither.
"""

from __future__ import annotations

import difflib
import importlib
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.config.names import fold
from core.interfaces.errors import ConfigError, PluginLoadError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from core.registry.records import PluginRecord

MASK = "***"
_TELLING_NAMES = ("secret", "password", "passwd", "token", "api_key", "credential")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a plugin. key: what the model takes it by. type: for people, e.g. "int | None".
    secret: whether its value must never be shown."""

    name: str
    key: str
    type: str
    default: Any
    required: bool
    description: str
    secret: bool


def load_model(record: PluginRecord) -> type[BaseModel]:
    """The plugin's settings model. Imports its module. Raises PluginLoadError."""
    from pydantic import BaseModel

    assert record.config is not None
    module_name, _, attribute = record.config.partition(":")
    try:
        model = getattr(importlib.import_module(module_name.strip()), attribute.strip())
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError("it is no pydantic model")
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # a plugin may raise anything, SystemExit included
        raise PluginLoadError(
            f"{record.title}: its settings model {record.config} cannot be imported: {type(exc).__name__}: {exc}",
            hint=f"repair or reinstall {record.distribution}",
        ) from exc
    return model


def options_of(model: type[BaseModel]) -> tuple[Option, ...]:
    """The model's settings, in its order."""
    return tuple(_option(name, info) for name, info in model.model_fields.items())


def takes_anything(model: type[BaseModel]) -> bool:
    """Whether the model keeps keys that it does not declare."""
    return model.model_config.get("extra") == "allow"


def find_option(key: str, options: tuple[Option, ...]) -> Option | None:
    """The setting that `key` means."""
    exact = [option for option in options if key in (option.name, option.key)]
    loose = exact or [option for option in options if fold(key) in (fold(option.name), fold(option.key))]
    return loose[0] if len(loose) == 1 else None


def validate(
    record: PluginRecord, section: Mapping[str, Any], source: Callable[[str], str] = lambda key: ""
) -> BaseModel:
    """The validated settings. source: who decided a key, as text, or "".

    Raises ConfigError naming field, value (not a secret's), source and what is allowed; PluginLoadError.
    """
    from pydantic import ValidationError

    model = load_model(record)
    options = options_of(model)
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for key, value in section.items():
        option = find_option(key, options)
        if option is None and not takes_anything(model):
            raise unknown_key(record, key, value, source(key), options)
        values[option.key if option is not None else key] = value
        given[option.key if option is not None else key] = key
    try:
        return model(**values)
    except ValidationError as exc:
        error = _invalid(record, exc.errors(), options, given, source)
        if any(option.secret for option in options):
            raise error from None  # the chained error would show the values
        raise error from exc


def unknown_key(record: PluginRecord, key: str, value: Any, source: str, options: tuple[Option, ...]) -> ConfigError:
    """The error for a key that the plugin does not have."""
    field = f"plugins.{record.name}.{key}"
    shown = f"{field} is {MASK if is_telling(key) else repr(value)}{f' ({source})' if source else ''}"
    close = difflib.get_close_matches(key, [option.name for option in options], n=1)
    return ConfigError(
        f"{shown}, but {record.title} has no such setting",
        field=field,
        value=MASK if is_telling(key) else value,
        hint=(f"did you mean {close[0]!r}? " if close else "") + _allowed(record, options),
    )


def is_telling(key: str) -> bool:
    """Whether a setting of unknown type sounds like a secret."""
    return any(word in fold(key) for word in _TELLING_NAMES)


def _invalid(
    record: PluginRecord,
    errors: list[Any],
    options: tuple[Option, ...],
    given: Mapping[str, str],
    source: Callable[[str], str],
) -> ConfigError:
    error = errors[0]
    loc = tuple(str(part) for part in error["loc"])
    hint = _allowed(record, options)
    if not loc:  # a rule over several settings; its input is all of them
        return ConfigError(f"plugins.{record.name}: {error['msg']}", field=f"plugins.{record.name}", hint=hint)
    option = find_option(loc[0], options)
    name = option.name if option is not None else loc[0]
    field = ".".join(("plugins", record.name, name, *loc[1:]))
    if error["type"] == "missing":
        return ConfigError(f"{field} is not set, and {record.title} needs it", field=field, hint=hint)
    secret = option.secret if option is not None else is_telling(loc[0])
    value = MASK if secret else error["input"]
    origin = source(given[loc[0]]) if loc[0] in given else ""
    shown = MASK if secret else repr(value)
    return ConfigError(
        f"{field} is {shown}{f' ({origin})' if origin else ''}: {error['msg']}", field=field, value=value, hint=hint
    )


def _allowed(record: PluginRecord, options: tuple[Option, ...]) -> str:
    texts = []
    for option in options:
        default = "required" if option.required else f"default {MASK if option.secret else repr(option.default)}"
        texts.append(f"{option.name} ({option.type}, {default})")
    return f"settings of {record.name}: {', '.join(texts) or 'none'}"


def _option(name: str, info: FieldInfo) -> Option:
    alias = info.validation_alias if isinstance(info.validation_alias, str) else info.alias
    secret = _has_secret(info.annotation)
    default = None if info.is_required() else info.default
    if info.default_factory is not None:
        try:
            default = info.get_default(call_default_factory=True)
        except Exception:  # one that is made from other settings, or that fails: it is only shown
            default = "computed"
    return Option(name, alias or name, _type_text(info.annotation), default, info.is_required(),
                  info.description or "", secret)  # fmt: skip


def _type_text(annotation: Any) -> str:
    if typing.get_origin(annotation) is None and isinstance(annotation, type):
        return annotation.__name__
    return re.sub(r"\b(?:typing|pydantic(?:\.\w+)*|[a-z_]\w*(?:\.[a-z_]\w*)+)\.", "", str(annotation))


def _has_secret(annotation: Any) -> bool:
    from pydantic import BaseModel, SecretBytes, SecretStr

    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        if issubclass(annotation, SecretStr | SecretBytes):
            return True
        if issubclass(annotation, BaseModel):
            return any(_has_secret(info.annotation) for info in annotation.model_fields.values())
        return False
    return any(_has_secret(part) for part in typing.get_args(annotation))
