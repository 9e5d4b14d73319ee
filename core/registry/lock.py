"""LockSet: the plugins that a parent process chose, verified by every child."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from core.interfaces.errors import PluginError, PluginMismatch

if TYPE_CHECKING:
    from core.registry.catalog import Catalog
    from core.registry.records import PluginRecord


class LockedPlugin(msgspec.Struct, frozen=True, order=True):
    """One chosen plugin, exactly."""

    kind: str
    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind} {self.distribution}:{self.name} {self.version}"


class LockSet(msgspec.Struct, frozen=True):
    """Everything that was chosen, sorted. Crosses process boundaries as msgpack."""

    plugins: tuple[LockedPlugin, ...] = ()

    @classmethod
    def of(cls, records: Iterable[PluginRecord]) -> LockSet:
        """The lock of some records, each once."""
        locked = {LockedPlugin(r.kind, r.name, r.distribution, r.version) for r in records}
        return cls(tuple(sorted(locked)))

    def verify(self, catalog: Catalog) -> None:
        """Raises PluginMismatch naming every plugin that this process does not see exactly as locked."""
        problems = []
        for plugin in self.plugins:
            try:
                record = catalog.record(plugin.kind, f"{plugin.distribution}:{plugin.name}")
            except PluginError as exc:
                problems.append(f"{plugin}: {exc.message}")
                continue
            if record.version != plugin.version:
                problems.append(f"{plugin}: this process has version {record.version}")
        self._raise(problems)

    def check_same(self, other: LockSet) -> None:
        """Raises PluginMismatch unless `other`, what this process chose, is this lock set."""
        self._raise(
            [f"{plugin}: not chosen here" for plugin in self.plugins if plugin not in other.plugins]
            + [f"{plugin}: chosen here only" for plugin in other.plugins if plugin not in self.plugins]
        )

    def _raise(self, problems: list[str]) -> None:
        if problems:
            raise PluginMismatch(
                "this process sees other plugins than its parent: " + "; ".join(problems),
                hint="run all processes from the same environment, and restart after installing or removing plugins",
            )
