"""Single methods of an interface that are on their way out.

An interface changes without breaking anyone in three versions. Version N has `old`. Version N + 1 adds `new`, whose
default calls `old`, and marks `old` with `@superseded`: a plugin that overrides only `old` runs unchanged, with one
warning. Version N + 2 drops `old`, and a plugin that claims no more than N is refused before it is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_MARK = "__core_superseded__"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Superseded:
    """method: the old one. by: its successor. since, removed_in: interface versions. required: whether a class must
    implement one of the two."""

    method: str
    by: str
    since: int
    removed_in: int
    required: bool = False


def superseded(*, by: str, since: int, removed_in: int, required: bool = False) -> Callable[[F], F]:
    """Mark a method of an interface whose successor `by` has a default in terms of it. Goes below @classmethod.

    required: the method used to be abstract. It no longer can be (a plugin that has `by` need not have it), so core
    refuses, when it loads a class, one that overrides neither.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, Superseded(function.__name__, by, since, removed_in, required))
        return function

    return mark


def outdated_methods(target: type, interface: type) -> tuple[Superseded, ...]:
    """Superseded methods that `target` overrides without their successors. One that has both serves older cores as
    well and is up to date."""
    return tuple(
        entry
        for entry in _marks(interface)
        if _overrides(target, interface, entry.method) and not _overrides(target, interface, entry.by)
    )


def missing_methods(target: type, interface: type) -> tuple[Superseded, ...]:
    """Superseded methods of which `target` must have the method or its successor, and has neither."""
    return tuple(
        entry
        for entry in _marks(interface)
        if entry.required
        and not _overrides(target, interface, entry.method)
        and not _overrides(target, interface, entry.by)
    )


def _marks(interface: type) -> list[Superseded]:
    found = []
    for name in dir(interface):
        function = inspect.getattr_static(interface, name, None)
        mark = getattr(getattr(function, "__func__", function), _MARK, None)
        if isinstance(mark, Superseded):
            found.append(mark)
    return found


def _overrides(target: type, interface: type, name: str) -> bool:
    ours = inspect.getattr_static(target, name, None)
    return ours is not None and ours is not inspect.getattr_static(interface, name, None)
