"""HookManager: calls the listeners of one process. One that raises is switched off; it never stops the caller."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from core.config.fields import SECRET_FIELDS, setting_fields
from core.interfaces.errors import ConfigError, PluginLoadError
from core.interfaces.hooks import HOOK_NAMES, PROJECT, HookSpecs, Process
from core.registry.context import plugin_context
from core.registry.records import PluginRecord
from core.registry.resolution import Choice
from core.registry.select_listeners import AUTO, broken_listener, listener_problem

if TYPE_CHECKING:
    from core.config.sections import Settings
    from core.hooks.metrics import PluginMetrics

logger = logging.getLogger("core.hooks")


@dataclass(frozen=True, slots=True)
class _Listener:
    """One implementation of one hook. arguments: the names it wants."""

    record: PluginRecord
    function: Callable[..., Any]
    arguments: tuple[str, ...]


class HookManager:
    """The listeners of one process. Without any it is empty, and `has` is all that anybody asks."""

    def __init__(self, plugins: Sequence[tuple[PluginRecord, Any]] = (), *, strict: bool = True) -> None:
        """plugins: constructed hook plugins, in the order in which they are called. strict: metrics whose names are
        taken raise. Raises PluginLoadError naming plugin, distribution and hook if one does not fit the hooks."""
        self._strict = strict
        self.plugins = tuple(plugin for _, plugin in plugins)
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(HookSpecs)
        records: dict[str, PluginRecord] = {}
        for record, plugin in reversed(plugins):  # pluggy calls the last one first
            problem = listener_problem(plugin)
            if problem:
                raise broken_listener(record, problem)
            manager.register(plugin, name=record.full_name)
            records[record.full_name] = record
        self._listeners: dict[str, tuple[_Listener, ...]] = {}
        for name in HOOK_NAMES:
            implementations = reversed(getattr(manager.hook, name).get_hookimpls())
            found = tuple(_Listener(records[i.plugin_name], i.function, tuple(i.argnames)) for i in implementations)
            if found:
                self._listeners[name] = found

    @classmethod
    def build(
        cls, choices: Sequence[Choice], plugin_settings: Mapping[str, Mapping[str, Any]], *, strict: bool
    ) -> HookManager:
        """Construct what was chosen.

        strict: the operator named the plugins, so one that cannot be constructed raises PluginLoadError; else it is
        logged and left out. Wrong settings of a plugin raise ConfigError in either case: somebody typed them.
        """
        plugins = []
        for choice in choices:
            assert choice.record is not None
            try:
                plugin = _construct(choice.record, choice.target, plugin_settings)
            except ConfigError:
                raise
            except PluginLoadError as exc:
                if strict:
                    raise
                logger.error("%s; it is left out", exc.message, exc_info=exc.__cause__)
                continue
            plugins.append((choice.record, plugin))
        return cls(plugins, strict=strict)

    @classmethod
    def start(cls, choices: Sequence[Choice], settings: Settings, process: Process) -> HookManager:
        """Construct what was chosen for this process and tell it the settings. Raises as `build` does."""
        hooks = cls.build(choices, settings.plugins, strict=settings.engine.hooks != (AUTO,))
        if hooks.has("core_configure"):
            hooks.call("core_configure", settings=public_settings(settings), process=process)
        return hooks

    def has(self, hook: str) -> bool:
        """Whether somebody listens. Ask before making what a hook is told."""
        return hook in self._listeners

    def listeners(self, hook: str) -> tuple[PluginRecord, ...]:
        """Who listens to `hook`, in the order of the calls; not those that were switched off."""
        return tuple(listener.record for listener in self._listeners.get(hook, ()))

    def call(self, hook: str, **values: Any) -> None:
        """Call every listener of `hook`. Never raises, but for KeyboardInterrupt."""
        for listener in self._listeners.get(hook, ()):
            try:
                listener.function(*[values[name] for name in listener.arguments])
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # a plugin may raise anything, SystemExit included
                self._switch_off(hook, listener, exc)

    def metrics(self) -> PluginMetrics:
        """What listeners of core_metrics register. For a name that is taken, raises PluginLoadError if the operator
        named the plugins; else that plugin's metrics are left out with an error in the log."""
        from core.hooks.metrics import PluginMetrics

        found = PluginMetrics()
        for listener in self._listeners.get("core_metrics", ()):
            registry = found.registry(listener.record)
            try:
                listener.function(*[registry for _ in listener.arguments])
                registry.check()
            except PluginLoadError as exc:
                if self._strict:
                    raise
                logger.error("%s; its metrics are left out", exc.message)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:
                self._switch_off("core_metrics", listener, exc)
            else:
                found.add(registry)
        return found

    def _switch_off(self, hook: str, listener: _Listener, error: BaseException) -> None:
        rest = tuple(other for other in self._listeners[hook] if other is not listener)
        if rest:
            self._listeners[hook] = rest
        else:
            del self._listeners[hook]
        logger.error("%s raised in %s, which does not call it any more", listener.record.title, hook, exc_info=error)


def _construct(record: PluginRecord, target: Any, plugin_settings: Mapping[str, Mapping[str, Any]]) -> Any:
    ctx = plugin_context(record, plugin_settings)
    try:
        plugin = target(ctx)
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as exc:
        raise PluginLoadError(
            f"{record.title} could not be constructed: {type(exc).__name__}: {exc}",
            hint="check its settings (`core config show`), or leave it out of --hooks",
        ) from exc
    problem = listener_problem(plugin)
    if problem:
        raise broken_listener(record, problem)
    return plugin


def public_settings(settings: Settings) -> Mapping[str, Mapping[str, Any]]:
    """section -> name -> value, read only. Secrets and plugins' own sections are left out."""
    sections: dict[str, dict[str, Any]] = {}
    for entry in setting_fields():
        if entry.name not in SECRET_FIELDS:
            value = getattr(getattr(settings, entry.section), entry.name)
            sections.setdefault(entry.section, {})[entry.name] = value
    return MappingProxyType({name: MappingProxyType(values) for name, values in sections.items()})
