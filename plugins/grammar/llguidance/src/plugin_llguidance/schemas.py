"""What of JSON Schema the library implements. It refuses unknown keywords by itself; here they get their path, and
what it is too lax about is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.parsing.regexes import pieces_of
from core.parsing.schema_rules import Schema, SchemaLimits, SchemaRules
from plugin_llguidance.settings import Options

KEYWORDS = frozenset(
    "type enum const $ref anyOf oneOf allOf properties required additionalProperties patternProperties minProperties "
    "maxProperties items prefixItems minItems maxItems minLength maxLength pattern format minimum maximum "
    "exclusiveMinimum exclusiveMaximum multipleOf uniqueItems".split()
)
COUNTS = frozenset("minProperties maxProperties minItems maxItems minLength maxLength".split())
_ONE = frozenset({"items", "additionalProperties"})
_MANY = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
# `\uXXXX` is left out of the escapes a text may have, as it would let a name that `properties` has come again.
ESCAPES = 'nrbtf\\"'
_ESCAPED = frozenset("\b\f\n\r\t")


def schema_rules(options: Options) -> SchemaRules:
    limits = SchemaLimits(
        max_bytes=options.max_schema_bytes,
        max_depth=options.max_schema_depth,
        max_nodes=options.max_schema_nodes,
        max_count=options.max_repeat,
    )
    return SchemaRules("llguidance", KEYWORDS, check, limits)


def check(schema: Schema) -> str | None:
    """What of one schema object is not supported."""
    if schema.get("format", "date") not in FORMATS:
        return f"format: {schema['format']!r} is not supported; supported: {', '.join(sorted(FORMATS))}"
    if schema.get("uniqueItems"):
        return "uniqueItems: is not supported"
    least = schema.get("minProperties", 0)
    required = schema.get("required", ())
    if least > 1 and least > len(set(required)):
        return "minProperties: over 1 is supported only where `required` names as many: other names may come twice"
    for key in ("enum", "const"):
        if any(ord(char) < 32 and char not in _ESCAPED for text in _texts(schema.get(key)) for char in text):
            return f"{key}: control characters other than \\b \\f \\n \\r \\t are not supported"
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def plain(schema: Any) -> Any:
    """A schema without what the library trips over: `uniqueItems: false`, counts like 2.0, NUL in patterns."""
    if not isinstance(schema, Mapping):
        return schema
    made = {key: item for key, item in schema.items() if key != "uniqueItems"}
    for key, item in made.items():
        if key in COUNTS and isinstance(item, float):
            made[key] = int(item)
        elif key == "pattern" and isinstance(item, str):
            made[key] = _without_nul(item)
        elif key == "patternProperties" and isinstance(item, Mapping):
            made[key] = {_without_nul(name): plain(option) for name, option in item.items()}
        elif key in _ONE:
            made[key] = plain(item)
        elif key in _MANY and isinstance(item, list):
            made[key] = [plain(option) for option in item]
        elif key in _NAMED and isinstance(item, Mapping):
            made[key] = {name: plain(option) for name, option in item.items()}
    return made


def _without_nul(pattern: str) -> str:
    """Sets of characters without NUL: where one has it, the library takes escaped quotes and backslashes too."""
    sets = (f"[{p}&&[^\\x00]]" if p.startswith("[") and len(p) > 1 else p for p in pieces_of(pattern))
    return "".join(sets)


def json_options(options: Options) -> dict[str, Any]:
    """The library's options for JSON."""
    made: dict[str, Any] = {"json_allowed_escapes": ESCAPES, "lenient": False, "coerce_one_of": False}
    if options.whitespace == "compact":
        return {**made, "whitespace_flexible": False}
    return {**made, "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{options.max_whitespace}}}"}
