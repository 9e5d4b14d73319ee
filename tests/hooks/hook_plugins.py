"""Listeners for tests."""

from __future__ import annotations

from typing import Any

from core.hooks import HookManager
from core.interfaces.hooks import HookPlugin, hookimpl
from core.registry import PluginRecord


class Recorder(HookPlugin):
    """Keeps all that it is told, as (hook, value)."""

    def __init__(self, ctx: Any = None) -> None:
        super().__init__(ctx)
        self.heard: list[tuple[str, Any]] = []

    @hookimpl
    def core_configure(self, settings: Any, process: Any) -> None:
        self.heard.append(("configure", (settings, process)))

    @hookimpl
    def core_weights_loaded(self, report: Any) -> None:
        self.heard.append(("weights", report))

    @hookimpl
    def core_engine_started(self, info: Any) -> None:
        self.heard.append(("started", info))

    @hookimpl
    def core_engine_stopping(self, reason: Any) -> None:
        self.heard.append(("stopping", reason))

    @hookimpl
    def core_request_admitted(self, request: Any) -> None:
        self.heard.append(("admitted", request))

    @hookimpl
    def core_request_finished(self, request: Any) -> None:
        self.heard.append(("finished", request))

    @hookimpl
    def core_steps_done(self, steps: Any) -> None:
        self.heard.append(("steps", steps))

    def of(self, hook: str) -> list[Any]:
        return [value for name, value in self.heard if name == hook]

    @property
    def order(self) -> list[str]:
        return [name for name, _ in self.heard]


def record(name: str, loaded: Any = None, dist: str = "dummy", **fields: Any) -> PluginRecord:
    return PluginRecord("hooks", name, dist, "1.0", target=f"nowhere:{name}", loaded=loaded, **fields)


def manager(*plugins: Any, strict: bool = True) -> HookManager:
    return HookManager([(record(f"p{i}", dist=f"dist{i}"), plugin) for i, plugin in enumerate(plugins)], strict=strict)
