"""Operations for one layer: with the arguments that are the same in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bind(op: Callable[..., Any], plain: Callable[..., Any], **constants: Any) -> Callable[..., Any]:
    """`op` with `constants` given, which are final: what `op.bind(**constants)` returns if it has that, else `plain`.
    A layer asks for it once and keeps it.

    What it returns takes the arguments that are left by place, in the order of the reference, and computes the same. It
    can find once what depends on the constants alone: in a step that is launched kernel by kernel, looking that up
    costs more than the launch.
    """
    own: Callable[..., Callable[..., Any]] | None = getattr(op, "bind", None)
    return plain if own is None else own(**constants)


def bound_by(make: Callable[..., Callable[..., Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates an operation with its `bind`."""

    def decorate(op: Callable[..., Any]) -> Callable[..., Any]:
        op.bind = make  # type: ignore[attr-defined]
        return op

    return decorate
