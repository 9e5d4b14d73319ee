"""Routes of plugins: constructed, checked against everybody else's paths, mounted behind core's own rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route, compile_path

from core.interfaces.errors import ConfigError, CoreError, PluginClash, PluginLoadError
from core.registry.context import plugin_context
from core.registry.records import PluginRecord
from core.registry.resolution import Choice
from core.server.auth import OPEN_PATHS, OPEN_PREFIXES
from core.server.guard import PluginGuard

if TYPE_CHECKING:
    from core.interfaces.routes import ServerAccess

HINT = "repair or reinstall {distribution}, or leave it out of --routes"


@dataclass(frozen=True, slots=True)
class PluginRouter:
    """The router of one plugin."""

    record: PluginRecord
    router: APIRouter


def make_routers(
    choices: Sequence[Choice], plugin_settings: Mapping[str, Mapping[str, Any]], access: ServerAccess
) -> list[PluginRouter]:
    """Construct the chosen plugins and ask for their routes. Raises PluginLoadError naming plugin and distribution,
    ConfigError for wrong settings."""
    return [_make(choice, plugin_settings, access) for choice in choices]


def _make(choice: Choice, plugin_settings: Mapping[str, Mapping[str, Any]], access: ServerAccess) -> PluginRouter:
    record = choice.record
    assert record is not None
    ctx = plugin_context(record, plugin_settings)
    try:
        router = choice.target(ctx).router(access)
    except ConfigError:
        raise
    except CoreError as exc:
        raise _broken(record, f"could not make its routes: {exc.message}") from exc
    except Exception as exc:
        raise _broken(record, f"could not make its routes: {type(exc).__name__}: {exc}") from exc
    if not isinstance(router, APIRouter):
        raise _broken(record, f"gives {type(router).__name__} as its routes, not a fastapi.APIRouter")
    return PluginRouter(record, router)


def mount(app: FastAPI, routers: Sequence[PluginRouter], max_body_bytes: int) -> None:
    """Add the routers to `app`, which has all of core's own routes.

    Raises PluginClash for a path that somebody serves already, naming both; PluginLoadError for what is no HTTP route.
    """
    taken = dict.fromkeys(_paths(app.routes), "core")
    taken |= dict.fromkeys((*OPEN_PATHS, *(f"{prefix}{{rest:path}}" for prefix in OPEN_PREFIXES)), "core")
    served: list[str] = []
    for item in routers:
        own = list(_checked_paths(item))
        for path in own:
            for other, owner in taken.items():
                if overlap(path, other):
                    same = f"as {owner} does" if path == other else f"and {owner} serves {other}"
                    raise PluginClash(
                        f"{item.record.title} serves {path}, {same}",
                        hint=f"leave {item.record.name} out of --routes; its author has to choose other paths",
                    )
        taken |= dict.fromkeys(own, item.record.title)
        served += own
        app.include_router(item.router, tags=[item.record.name])
    if served:
        app.add_middleware(PluginGuard, patterns=[compile_path(path)[0] for path in served], limit=max_body_bytes)


def _checked_paths(item: PluginRouter) -> Iterator[str]:
    record = item.record
    for name in ("on_startup", "on_shutdown"):
        if getattr(item.router, name, None):
            raise _broken(record, f"has {name} functions, which no server of core's calls; use the constructor")
    for route in _flat(item.router.routes):
        kind = getattr(route, "original_route", route)
        if not isinstance(kind, Route):
            raise _broken(record, f"adds a {type(kind).__name__} to its routes; only HTTP routes are served")
        if "OPTIONS" in (route.methods or ()):
            raise _broken(record, f"answers OPTIONS on {route.path}, which needs no key; leave that to core")
        yield str(route.path)


def _paths(routes: Iterable[BaseRoute]) -> Iterator[str]:
    for route in _flat(routes):
        path = getattr(route, "path", None)
        if path:
            yield path


def _flat(routes: Iterable[BaseRoute]) -> Iterable[Any]:
    """Every route with its whole path. FastAPI used to copy the routes of an included router, and now refers to it."""
    try:
        from fastapi.routing import iter_route_contexts
    except ImportError:
        return routes
    return iter_route_contexts(list(routes))


def routes_of(router: APIRouter) -> Iterable[Any]:
    """Every route of a router and of those that it includes, with `path` and `methods`."""
    return _flat(router.routes)


def _broken(record: PluginRecord, problem: str) -> PluginLoadError:
    return PluginLoadError(f"{record.title} {problem}", hint=HINT.format(distribution=record.distribution))


def overlap(one: str, other: str) -> bool:
    """Whether some path may fit both templates. `{name}` is one part of a path, `{name:path}` any number; a part that
    is only partly a name counts as any. A slash at the end makes no difference."""
    return _overlap(_parts(one), _parts(other))


_ONE, _REST = object(), object()


def _parts(template: str) -> list[Any]:
    parts: list[Any] = []
    for part in template.strip("/").split("/"):
        if re.search(r"\{[^}]*:path\}", part):
            return [*parts, _REST]
        parts.append(_ONE if "{" in part else part)
    return parts


def _overlap(one: list[Any], other: list[Any]) -> bool:
    for a, b in zip(one, other, strict=False):
        if a is _REST or b is _REST:
            return True
        if a is not _ONE and b is not _ONE and a != b:
            return False
    longer = one if len(one) > len(other) else other
    return len(one) == len(other) or longer[min(len(one), len(other))] is _REST
