"""Choose listeners (hooks) and extra routes: any number of each, all of them named or, for hooks, all that work."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import pluggy

from core.interfaces.errors import ConfigError, PluginError, PluginLoadError
from core.interfaces.hooks import HOOK_NAMES, PROJECT, HookSpecs
from core.registry.candidates import Rejected, by_priority, loadable
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.resolution import Choice

HOOKS, ROUTES = "hooks", "routes"
AUTO, NONE = "auto", "none"
_LOG = logging.getLogger("core.registry")


def choose_hooks(
    asked: Sequence[str], hardware: str, catalog: Catalog, *, warn: bool = True
) -> tuple[tuple[Choice, ...], Rejected]:
    """The hook plugins that listen, and those left out with the reason.

    asked: ("auto",) for every installed one that can be used, ("none",), or names. A named one that is broken raises
    its PluginError; of the others each broken one is a warning (if `warn`; a child process leaves that to its parent).
    """
    if tuple(asked) in ((), (NONE,)):
        return (), []
    if tuple(asked) != (AUTO,):
        return tuple(_named(name, catalog) for name in _unique(asked, HOOKS, catalog)), []
    chosen: list[Choice] = []
    rejected: Rejected = []
    for record in by_priority(catalog, HOOKS):
        before = len(rejected)
        for _, target in loadable(catalog, [record], hardware, rejected):
            problem = listener_problem(target)
            if problem:
                rejected.append((record.name, problem))
            else:
                chosen.append(Choice(HOOKS, record.name, record, target, "installed"))
        if warn and len(rejected) > before:
            _LOG.warning("%s is not used: %s", record.title, rejected[-1][1])
    return tuple(chosen), rejected


def choose_routes(asked: Sequence[str], catalog: Catalog, *, load: bool = True) -> tuple[Choice, ...]:
    """The route plugins that the operator names. Raises PluginError for one that cannot be used.

    load: import them. A process that serves no HTTP only checks that it sees the same ones; its targets are None.
    """
    if tuple(asked) in ((), (NONE,)):
        return ()
    chosen = []
    for name in _unique(asked, ROUTES, catalog):
        record = catalog.record(ROUTES, name)
        chosen.append(Choice(ROUTES, record.name, record, catalog.load(ROUTES, name) if load else None, "asked for"))
    return tuple(chosen)


def _named(name: str, catalog: Catalog) -> Choice:
    try:
        record = catalog.record(HOOKS, name)
        target = catalog.load(HOOKS, name)
    except PluginError as exc:
        exc.hint = f"{exc.hint + '; ' if exc.hint else ''}--hooks none starts without listeners"
        raise
    problem = listener_problem(target)
    if problem:
        raise broken_listener(record, problem)
    return Choice(HOOKS, record.name, record, target, "asked for")


def broken_listener(record: PluginRecord, problem: str) -> PluginLoadError:
    """The error of a hook plugin that does not fit the hooks."""
    return PluginLoadError(
        f"{record.title} cannot be used: {problem}",
        hint=f"repair or reinstall {record.distribution}, or leave it out of --hooks",
    )


def _unique(asked: Sequence[str], kind: str, catalog: Catalog) -> list[str]:
    """The names, each plugin once. Raises ConfigError where a word that stands alone stands among names."""
    for word in (AUTO, NONE):
        if word in asked and not catalog.has(kind, word):
            section = "engine" if kind == HOOKS else "server"
            raise ConfigError(
                f"{kind} is {','.join(asked)!r}; {word!r} stands alone",
                field=f"{section}.{kind}",
                value=tuple(asked),
                hint=f"give names of {kind} plugins (`core plugins list --kind {kind}`), or one word",
            )
    return list({catalog.lookup(kind, name).full_name: name for name in asked}.values())


def listener_problem(target: Any) -> str:
    """Why a hook plugin (its class, or an instance) does not fit the hooks, naming the hook; "" if it does.

    pluggy checks names and arguments. Listeners are plain functions: core neither awaits nor wraps.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    for name in HOOK_NAMES:
        method = getattr(target, name, None)
        if callable(method) and not hasattr(method, f"{PROJECT}_impl"):
            return f"its {name} is not marked @hookimpl"
    try:
        manager.register(target, name="plugin")
    except Exception as exc:
        text = " ".join(str(exc).replace("Plugin 'plugin'", "its implementation").split())
        return f"{type(exc).__name__}: {text}"
    callers = manager.get_hookcallers(target) or []
    unknown = sorted(caller.name for caller in callers if not caller.has_spec())
    if unknown:
        return f"there is no hook {', '.join(unknown)}; there are {', '.join(HOOK_NAMES)}"
    for caller in callers:
        for implementation in caller.get_hookimpls():
            function = implementation.function
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                return f"its {caller.name} is a coroutine; hooks are called, not awaited"
            if inspect.isgeneratorfunction(function):
                return f"its {caller.name} is a generator or a wrapper; hooks are listeners and wrap nothing"
    return ""
