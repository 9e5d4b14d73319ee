"""Whether the arguments of a call fit the tool's schema. Told, never acted on: arguments have gone out by then."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core.parsing.typed import resolve

MAX_PROBLEMS = 5  # told of one call
MAX_DEPTH = 64
MAX_CHECKS = 10_000  # schemas looked at for one call; references can make a small one very large
_SHOWN = 60  # characters of a value

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "number": (int, float), "integer": (int, float),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallProblem:
    """index: of the call. path: of the value in its arguments, as $.days[0]."""

    index: int
    path: str
    message: str


def check_call(index: int, arguments: str, schema: Any) -> list[CallProblem]:
    """What does not fit. schema: the tool's `parameters`; None is none.

    Checked: type, enum, const, properties, required, additionalProperties, items, the bounds of lengths, sizes and
    numbers, anyOf, oneOf, allOf and local references. What other keywords ask is not looked at.
    """
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return [CallProblem(index, "$", "the arguments are no JSON")]
    if not isinstance(value, dict):
        return [CallProblem(index, "$", "the arguments are no object")]
    found = _Check(schema).problems("$", value, schema, 0)
    return [CallProblem(index, path, message) for path, message in islice(found, MAX_PROBLEMS)]


class _Check:
    """One call's check. root: where references begin."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = MAX_CHECKS

    def problems(self, path: str, value: Any, schema: Any, depth: int) -> Iterator[tuple[str, str]]:
        """(path, what is wrong) of each."""
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            return
        if schema is False:
            yield path, "is not allowed"
        if not isinstance(schema, Mapping):
            return
        if isinstance(schema.get("$ref"), str):
            yield from self.problems(path, value, resolve(schema, self._root), depth + 1)
        types = schema.get("type")
        allowed = [types] if isinstance(types, str) else types if isinstance(types, list) else []
        if allowed and not any(_is(value, str(name)) for name in allowed):
            yield path, f"is {_shown(value)}; it must be of type {' or '.join(map(str, allowed))}"
            return
        members = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(members, list) and not any(_same(value, member) for member in members):
            yield path, f"is {_shown(value)}; it must be one of {_shown(members)}"
        yield from self._bounds(path, value, schema)
        if isinstance(value, dict):
            yield from self._members(path, value, schema, depth)
        if isinstance(value, list):
            for at, item in enumerate(value):
                yield from self.problems(f"{path}[{at}]", item, schema.get("items"), depth + 1)
        yield from self._branches(path, value, schema, depth)

    def _members(
        self, path: str, value: dict[str, Any], schema: Mapping[str, Any], depth: int
    ) -> Iterator[tuple[str, str]]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        for name in required if isinstance(required, list) else ():
            if name not in value:
                yield f"{path}.{name}", "is missing"
        others = None if "patternProperties" in schema else schema.get("additionalProperties")
        for name, item in value.items():
            yield from self.problems(f"{path}.{name}", item, properties.get(name, others), depth + 1)

    def _branches(self, path: str, value: Any, schema: Mapping[str, Any], depth: int) -> Iterator[tuple[str, str]]:
        for key in ("anyOf", "oneOf", "allOf"):
            branches = schema.get(key)
            if not isinstance(branches, list) or not branches:
                continue
            each = [list(islice(self.problems(path, value, branch, depth + 1), MAX_PROBLEMS)) for branch in branches]
            if key == "allOf":
                for problems in each:
                    yield from problems
            elif all(each):
                yield path, f"is {_shown(value)}; it fits nothing of {key}"

    @staticmethod
    def _bounds(path: str, value: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if _is(value, "number"):
            size, names = value, ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        elif isinstance(value, str):
            size, names = len(value), ("minLength", "maxLength", "", "")
        elif isinstance(value, list):
            size, names = len(value), ("minItems", "maxItems", "", "")
        else:
            return
        low, high, above, below = (schema.get(name) for name in names)
        for bound, name, fits in (
            (low, names[0], lambda b: size >= b), (high, names[1], lambda b: size <= b),
            (above, names[2], lambda b: size > b), (below, names[3], lambda b: size < b),
        ):  # fmt: skip
            if _is(bound, "number") and not fits(bound):
                yield path, f"is {_shown(value)}; {name} is {bound}"


def _is(value: Any, name: str) -> bool:
    kinds = _TYPES.get(name)
    if kinds is None:
        return True  # no type of JSON: the tool's maker means something by it
    if isinstance(value, bool) and name != "boolean":
        return False
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, kinds)


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0 and not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
