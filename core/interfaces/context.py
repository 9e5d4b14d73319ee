"""What a plugin's factory gets: a small frozen value, never the runner."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PluginContext:
    """Given to every plugin when it is constructed.

    settings: the plugin's own configuration section (`--set NAME.key=value`, YAML `plugins.NAME`,
        environment), validated by the plugin's own pydantic model where its manifest names one.
    logger: a child logger named after the plugin.
    device: the device this process computes on; None in processes that have none.
    metrics: a sink for counters and gauges; None where metrics are off.
    """

    settings: Any = field(default_factory=lambda: MappingProxyType({}))
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("core.plugin"))
    device: torch.device | None = None
    metrics: Mapping[str, Any] | None = None
