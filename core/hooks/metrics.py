"""PluginMetrics: prometheus collectors that hook plugins bring, each plugin's in a registry of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from core.interfaces.errors import PluginLoadError
from core.registry.records import PluginRecord

OWN_PREFIX = "core_"
# Names that samples of a family add to its own name, by type.
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}
logger = logging.getLogger("core.hooks")


class PluginMetrics:
    """All of them. `render` is what /metrics shows after core's own."""

    def __init__(self) -> None:
        self._owners: dict[str, PluginRecord] = {}
        self._registries: list[PluginRegistry] = []

    def registry(self, record: PluginRecord) -> PluginRegistry:
        """An empty registry for one plugin; it counts once it is added."""
        return PluginRegistry(record, self._owners)

    def add(self, registry: PluginRegistry) -> None:
        """Show what `registry` holds, and keep its names from others."""
        self._owners.update(dict.fromkeys(registry.names, registry.record))
        if registry.names:
            self._registries.append(registry)

    def render(self) -> bytes:
        """The text format. A collector that raises is logged, and its plugin's metrics are shown no more."""
        parts = []
        for registry in tuple(self._registries):
            try:
                parts.append(generate_latest(registry))
            except Exception:
                self._registries.remove(registry)
                logger.exception("metrics of %s raised, and are shown no more", registry.record.title)
        return b"".join(parts)


class PluginRegistry(CollectorRegistry):
    """A CollectorRegistry that refuses names of core and of other plugins."""

    def __init__(self, record: PluginRecord, owners: dict[str, PluginRecord]) -> None:
        super().__init__(auto_describe=True)
        self.record = record
        self.names: set[str] = set()
        self._owners = owners
        self._problem: PluginLoadError | None = None

    def register(self, collector: Collector) -> None:
        """See CollectorRegistry. Raises PluginLoadError for a name that is taken."""
        names = _names_of(collector)
        for name in sorted(names):
            if name.startswith(OWN_PREFIX):
                raise self._refuse(f"registers the metric {name!r}; names that begin with {OWN_PREFIX!r} are core's")
            owner = self._owners.get(name)
            if owner is not None:
                raise self._refuse(f"registers the metric {name!r}, as {owner.title} does")
            if name in self.names:
                raise self._refuse(f"registers the metric {name!r} twice")
        super().register(collector)
        self.names |= names

    def check(self) -> None:
        """Raises what `register` refused, if the plugin has caught it."""
        if self._problem is not None:
            raise self._problem

    def _refuse(self, problem: str) -> PluginLoadError:
        self._problem = PluginLoadError(
            f"{self.record.title} {problem}",
            hint=f"name them after the plugin, as {self.record.name}_...; --hooks chooses which plugins listen",
        )
        return self._problem


def _names_of(collector: Collector) -> set[str]:
    describe = getattr(collector, "describe", None)
    families: Iterable[Metric] = describe() if describe is not None else collector.collect()
    names: set[str] = set()
    for family in families:
        names.add(family.name)
        names.update(family.name + suffix for suffix in _SUFFIXES.get(family.type, ()))
    return names
