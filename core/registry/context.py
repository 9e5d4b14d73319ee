"""Make the small frozen context that a plugin's factory gets."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError, PluginLoadError
from core.registry.records import PluginRecord


def plugin_context(
    record: PluginRecord,
    plugins: Mapping[str, Mapping[str, Any]],
    *,
    device: Any = None,
    metrics: Mapping[str, Any] | None = None,
) -> PluginContext:
    """The context of one chosen plugin.

    device: torch.device or None; this floor does not know torch.
    plugins: `Settings.plugins`; the sections `name` and `distribution:name` are this plugin's, the latter wins.
    If the manifest names a model, the section is validated by it. Raises ConfigError for a wrong value,
    PluginLoadError if the model itself cannot be imported.
    """
    section: dict[str, Any] = {}
    for key in sorted(plugins, key=lambda key: ":" in key):
        if record.answers_to(key):
            section.update(plugins[key])
    values: Any = MappingProxyType(section)
    if record.config is not None:
        values = _validate(record, record.config, section)
    logger = logging.getLogger(f"core.plugin.{record.kind}.{record.name}")
    return PluginContext(settings=values, logger=logger, device=device, metrics=metrics)


def _validate(record: PluginRecord, target: str, section: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    module_name, _, attribute = target.partition(":")
    try:
        model = getattr(importlib.import_module(module_name), attribute)
    except Exception as exc:
        raise PluginLoadError(
            f"{record.title}: its settings model {target} cannot be imported: {type(exc).__name__}: {exc}",
            hint=f"repair or reinstall {record.distribution}",
        ) from exc
    try:
        return model(**section)
    except ValidationError as exc:
        error = exc.errors()[0]
        key = ".".join(str(part) for part in error["loc"])
        field = f"plugins.{record.name}.{key}"
        raise ConfigError(
            f"{field} is {error['input']!r}: {error['msg']}",
            field=field,
            value=error["input"],
            hint=f"settings of {record.name}: {', '.join(sorted(model.model_fields)) or 'none'}",
        ) from exc
