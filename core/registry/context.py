"""Make the small frozen context that a plugin's factory gets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from core.interfaces.context import PluginContext
from core.registry.options import validate
from core.registry.records import PluginRecord
from core.registry.sections import merged_section


def plugin_context(
    record: PluginRecord,
    plugins: Mapping[str, Mapping[str, Any]],
    *,
    device: Any = None,
    metrics: Mapping[str, Any] | None = None,
) -> PluginContext:
    """The context of one chosen plugin.

    device: torch.device or None; this floor does not know torch.
    plugins: `Resolution.plugin_settings` (or `Settings.plugins`); of sections that name this plugin more or less
    exactly (see core.registry.sections) the more exact one wins.
    If the manifest names a model, the section is validated by it. Raises ConfigError for a wrong value or an unknown
    key, PluginLoadError if the model itself cannot be imported.
    """
    section = merged_section(record, plugins)
    values: Any = MappingProxyType(section) if record.config is None else validate(record, section)
    logger = logging.getLogger(f"core.plugin.{record.kind}.{record.name}")
    return PluginContext(settings=values, logger=logger, device=device, metrics=metrics)
