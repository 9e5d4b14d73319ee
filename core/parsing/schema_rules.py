"""JSON schemas before a grammar library sees them: what it would silently ignore is refused, with its path.

Keywords of the standard that a library lacks are refused; words that no draft knows are annotations, as the standard
has it, and pass. References are followed within the schema only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from core.interfaces.errors import RequestError
from core.parsing.structure_tree import no_nul, parsed_json

Schema = Mapping[str, Any]

ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly $comment $schema $id $defs definitions "
    "contentEncoding contentMediaType contentSchema".split()
)
# What some draft or a widespread dialect gives a meaning to, besides the annotations.
KEYWORDS = frozenset(
    "type enum const $ref anyOf oneOf allOf not if then else "
    "properties required additionalProperties patternProperties propertyNames minProperties maxProperties "
    "dependentRequired dependentSchemas dependencies unevaluatedProperties "
    "items prefixItems additionalItems contains minContains maxContains minItems maxItems uniqueItems unevaluatedItems "
    "minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf "
    "$anchor $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor $vocabulary id divisibleBy disallow extends "
    "nullable discriminator x-guidance".split()
)
TYPES = frozenset("string number integer boolean object array null".split())
KNOWN_DRAFTS = re.compile(r"https?://json-schema\.org/(draft/(2020-12|2019-09)|draft-0[67])/schema#?")

_ONE = frozenset("additionalProperties items propertyNames not if then else contains unevaluatedItems "
                 "unevaluatedProperties additionalItems".split())  # fmt: skip
_MANY = frozenset("anyOf oneOf allOf prefixItems".split())
_NAMED = frozenset("properties patternProperties dependentSchemas".split())
_COUNTS = frozenset("minProperties maxProperties minItems maxItems minLength maxLength minContains maxContains".split())
_NUMBERS = frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split())


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """max_bytes: of the schema's text. max_depth: of schemas within schemas. max_nodes: schemas altogether.
    max_count: of minLength, maxItems and the like. max_values: of all enums together."""

    max_bytes: int = 1 << 18
    max_depth: int = 64
    max_nodes: int = 10_000
    max_count: int = 100_000
    max_values: int = 20_000


@dataclass(frozen=True, slots=True)
class SchemaRules:
    """What a backend takes.

    keywords: those it implements, of KEYWORDS.
    check: more about one schema object (path, schema, root); returns what is not supported, with the keyword in front
        if it is about one ("pattern: look-ahead"), or None.
    """

    backend: str
    keywords: frozenset[str]
    check: Callable[[Schema], str | None] = lambda schema: None
    limits: SchemaLimits = field(default_factory=SchemaLimits)


def checked_schema(source: str | bool | Schema, rules: SchemaRules, path: str = "$") -> bool | Schema:
    """The schema, parsed and checked: only what `rules` allow is in it. Raises RequestError with the path."""
    schema = parsed_json(source, "JSON schema", rules.limits.max_bytes) if isinstance(source, str) else source
    _Walk(schema, rules).visit(schema, path, 0)
    return schema


def subschemas(schema: Any, path: str = "$") -> Iterator[tuple[str, Schema]]:
    """All schema objects in a checked schema with their paths, inner ones first. References are not followed."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        here = f"{path}.{key}"
        if key in _ONE:
            yield from subschemas(value, here)
        elif key in _MANY:
            for index, item in enumerate(value):
                yield from subschemas(item, f"{here}[{index}]")
        elif key in _NAMED or key in ("$defs", "definitions"):
            for name, item in value.items():
                yield from subschemas(item, f"{here}.{name}")
    yield path, schema


def resolve(root: Any, reference: str) -> Any:
    """What "#" or "#/a/b" points at. Raises KeyError."""
    if not reference.startswith("#"):
        raise KeyError(reference)
    at = root
    for part in reference[1:].split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(at, list):
            at = at[int(part)] if part.isdecimal() and int(part) < len(at) else _missing(reference)
        elif isinstance(at, Mapping) and part in at:
            at = at[part]
        else:
            _missing(reference)
    if reference[1:] and not reference.startswith("#/"):
        _missing(reference)
    return at


def _missing(reference: str) -> Any:
    raise KeyError(reference)


class _Walk:
    def __init__(self, root: Any, rules: SchemaRules) -> None:
        self._root = root
        self._rules = rules
        self._num_nodes = 0
        self._num_values = 0
        self._seen: set[int] = set()

    def visit(self, schema: Any, path: str, depth: int) -> None:
        limits = self._rules.limits
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            raise RequestError(f"{path}: a schema is an object, true or false, not {_shown(schema)}")
        if id(schema) in self._seen:
            return
        self._seen.add(id(schema))
        self._num_nodes += 1
        if depth > limits.max_depth:
            raise RequestError(f"{path}: schemas are nested deeper than {limits.max_depth}")
        if self._num_nodes > limits.max_nodes:
            raise RequestError(f"{path}: more than {limits.max_nodes} schemas")
        for key, value in schema.items():
            here = f"{path}.{key}"
            no_nul(key, path)
            if key in ANNOTATIONS:
                self._annotation(key, value, here, depth)
            elif key in KEYWORDS:
                if key not in self._rules.keywords:
                    raise RequestError(f"{here}: `{key}` is not supported by the grammar backend {self._rules.backend}")
                self._keyword(key, value, here, depth)
        wrong = self._rules.check(schema)
        if wrong is not None:
            keyword, colon, what = wrong.partition(": ")
            place = f"{path}.{keyword}: {what}" if colon and keyword in schema else f"{path}: {wrong}"
            raise RequestError(f"{place} (grammar backend {self._rules.backend})")

    def _annotation(self, key: str, value: Any, here: str, depth: int) -> None:
        if key == "$schema" and not (isinstance(value, str) and KNOWN_DRAFTS.fullmatch(value)):
            raise RequestError(f"{here}: {_shown(value)} is no draft that is supported; leave it out or say 2020-12")
        if key == "$id" and depth:
            raise RequestError(f"{here}: `$id` is supported at the top only")
        if key in ("$defs", "definitions"):
            # Checked where they are referred to; here only that they can be.
            if not isinstance(value, Mapping):
                raise RequestError(f"{here}: must be an object of schemas")
            if _has_key(value, "$id", self._rules.limits.max_depth * 4):
                raise RequestError(f"{here}: `$id` is supported at the top only")

    def _keyword(self, key: str, value: Any, here: str, depth: int) -> None:
        limits = self._rules.limits
        if key in _ONE:
            self.visit(value, here, depth + 1)
        elif key in _MANY:
            if not isinstance(value, list) or not value:
                raise RequestError(f"{here}: must be a list of at least one schema")
            for index, item in enumerate(value):
                self.visit(item, f"{here}[{index}]", depth + 1)
        elif key in _NAMED:
            if not isinstance(value, Mapping):
                raise RequestError(f"{here}: must be an object of schemas")
            for name, item in value.items():
                no_nul(name, here)
                self.visit(item, f"{here}.{name}", depth + 1)
        elif key in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
                raise RequestError(f"{here}: must be a whole number of at least 0, not {_shown(value)}")
            if value > limits.max_count:
                raise RequestError(f"{here}: {value} is over the limit of {limits.max_count}")
        elif key in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
                raise RequestError(f"{here}: must be a number, not {_shown(value)}")
        elif key in ("pattern", "format"):
            if not isinstance(value, str):
                raise RequestError(f"{here}: must be a text, not {_shown(value)}")
            no_nul(value, here)
        elif key == "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise RequestError(f"{here}: must be a list of names")
        elif key == "uniqueItems":
            if not isinstance(value, bool):
                raise RequestError(f"{here}: must be true or false, not {_shown(value)}")
        elif key == "type":
            for name in value if isinstance(value, list) and value else [value]:
                if not isinstance(name, str) or name not in TYPES:
                    raise RequestError(f"{here}: {_shown(name)} is no type; types: {', '.join(sorted(TYPES))}")
        elif key in ("enum", "const"):
            self._values(value, key, here)
        elif key == "$ref":
            self._reference(value, here, depth)

    def _values(self, value: Any, key: str, here: str) -> None:
        if key == "enum" and (not isinstance(value, list) or not value):
            raise RequestError(f"{here}: must be a list of at least one value")
        for index, item in enumerate(value if key == "enum" else [value]):
            self._texts(item, f"{here}[{index}]" if key == "enum" else here, 0)

    def _texts(self, value: Any, here: str, depth: int) -> None:
        limits = self._rules.limits
        self._num_values += 1
        if self._num_values > limits.max_values or depth > limits.max_depth:
            raise RequestError(f"{here}: more than {limits.max_values} values or {limits.max_depth} levels of them")
        if isinstance(value, str):
            no_nul(value, here)
        elif isinstance(value, list):
            for item in value:
                self._texts(item, here, depth + 1)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                no_nul(name, here)
                self._texts(item, here, depth + 1)
        elif isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise RequestError(f"{here}: the number is too large")

    def _reference(self, value: Any, here: str, depth: int) -> None:
        if not isinstance(value, str):
            raise RequestError(f"{here}: must be a text, not {_shown(value)}")
        if value != "#" and not value.startswith("#/"):
            raise RequestError(f"{here}: {_shown(value)} is outside; only references like '#/$defs/name' are supported")
        try:
            target = resolve(self._root, value)
        except KeyError:
            raise RequestError(f"{here}: {_shown(value)} points at nothing") from None
        self._refuse_circle(value, here)
        self.visit(target, value.replace("#", "$", 1).replace("/", "."), depth + 1 if depth else 1)

    def _refuse_circle(self, reference: str, here: str) -> None:
        """A reference that leads to itself without anything in between fits no text, or any."""
        met: set[str] = set()
        at: Any = {"$ref": reference}
        while isinstance(at, Mapping) and isinstance(at.get("$ref"), str):
            if at["$ref"] in met:
                raise RequestError(f"{here}: {reference!r} leads back to itself")
            met.add(at["$ref"])
            try:
                at = resolve(self._root, at["$ref"])
            except KeyError:
                return  # refused where it stands


def _has_key(value: Any, key: str, depth: int) -> bool:
    if depth == 0:
        return True
    if isinstance(value, Mapping):
        return isinstance(value.get(key), str) or any(_has_key(item, key, depth - 1) for item in value.values())
    return isinstance(value, list) and any(_has_key(item, key, depth - 1) for item in value)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
