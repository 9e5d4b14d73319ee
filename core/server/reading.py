"""Reading nested JSON of a request: a mistake is a RequestError that names its place, as in messages[2].content."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from core.interfaces.errors import RequestError


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """`value`, an object."""
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} must be an object", param=where)
    return value


def string(where: str, holder: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    """holder[name], a string; `default` where it is missing."""
    value = holder.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        told = "is missing" if value is None else "must be a string"
        raise RequestError(f"{where}.{name} {told}", param=f"{where}.{name}")
    return value


def name(where: str, holder: Mapping[str, Any]) -> str:
    """holder["name"], a string that is not empty."""
    found = string(where, holder, "name")
    if not found:
        raise RequestError(f"{where}.name is empty", param=f"{where}.name")
    return found


def one_of(where: str, value: Any, allowed: Collection[str]) -> str:
    """`value`, one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise RequestError(f"{where} is {value!r}; it must be one of {', '.join(sorted(allowed))}", param=where)
    return value


def texts(where: str, content: Any, types: Collection[str] = ("text",)) -> str:
    """A string, or blocks of these types whose `text` is joined by line breaks."""
    return "\n".join(_parts(where, content, types))


def unsupported(where: str, kind: Any, what: str) -> RequestError:
    """The refusal of a block or item that is known or unknown, but not served."""
    return RequestError(f"{where}.type is {kind!r}; {what}", param=f"{where}.type", code="unsupported_content")


def each(where: str, content: Any, take: Callable[[str, Mapping[str, Any]], None]) -> None:
    """`take` each object of a list with its place."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise RequestError(f"{where} must be a string or a list", param=where)
    for index, item in enumerate(content):
        take(f"{where}[{index}]", mapping(f"{where}[{index}]", item))


def _parts(where: str, content: Any, types: Collection[str]) -> list[str]:
    if isinstance(content, str):
        return [content]
    found: list[str] = []

    def take(place: str, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        if kind not in types:
            raise unsupported(place, kind, "this model takes text only")
        found.append(string(place, part, "refusal" if kind == "refusal" else "text"))

    each(where, content, take)
    return found
