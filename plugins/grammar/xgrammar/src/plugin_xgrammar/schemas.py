"""JSON schemas rewritten to what the library follows exactly.

It ignores much silently: keywords beside `anyOf`, `$ref`, `enum` and `const`, keywords without a `type`, `allOf` of
several, `required` names that are no properties. Here each schema becomes one that it takes at its word, possibly
stricter (objects with `properties` have no others), or is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.interfaces.errors import RequestError
from core.parsing.schema_rules import Schema, SchemaLimits, SchemaRules, checked_schema, resolve
from plugin_xgrammar.patterns import json_pattern, plain_character
from plugin_xgrammar.settings import Options

FORMATS = frozenset("date time date-time duration email hostname ipv4 ipv6 uuid".split())
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset("properties required additionalProperties patternProperties propertyNames minProperties "
                        "maxProperties".split()),
    "boolean": frozenset(),
    "null": frozenset(),
}  # fmt: skip
_SEVERAL = frozenset({"anyOf", "oneOf", "allOf", "$ref", "enum", "const"})
KEYWORDS = frozenset({"type", "uniqueItems"}).union(_SEVERAL, *_OF_TYPE.values())
_MOST = 1 << 53


def schema_rules(options: Options) -> SchemaRules:
    limits = SchemaLimits(
        max_bytes=options.max_schema_bytes,
        max_depth=options.max_schema_depth,
        max_nodes=options.max_schema_nodes,
        max_count=options.max_repeat,
    )
    return SchemaRules("xgrammar", KEYWORDS, _check, limits)


def _check(schema: Schema) -> str | None:
    return "uniqueItems: is not supported" if schema.get("uniqueItems") else None


def rewritten(source: Any, rules: SchemaRules, path: str = "$", compact: bool = False) -> dict[str, Any]:
    """The schema for the library. `source`: a schema or its text. Raises RequestError with the path.

    compact: spell out what any value is, as the library puts whitespace into values that are not described.
    """
    root = checked_schema(source, rules, path)
    if root is False:
        raise RequestError(f"{path}: nothing fits the schema `false`")
    rewriter = _Rewriter(root, rules.limits.max_count, compact)
    made = rewriter.schema(root, path)
    rewriter.finish()
    return {**made, "$defs": rewriter.definitions} if rewriter.definitions else made


class _Rewriter:
    def __init__(self, root: Any, max_repeat: int, compact: bool) -> None:
        self._compact = compact
        self._root = root
        self._max_repeat = max_repeat
        self._names: dict[str, str] = {}
        self._waiting: list[str] = []
        self.definitions: dict[str, Any] = {}

    def finish(self) -> None:
        """Rewrite what references lead to, once each."""
        while self._waiting:
            reference = self._waiting.pop()
            path = reference.replace("#", "$", 1).replace("/", ".")
            self.definitions[self._names[reference]] = self.schema(resolve(self._root, reference), path)

    def schema(self, schema: Any, path: str) -> Any:
        if schema is True or schema is False:
            if schema is False:
                raise _refused(path, "the schema `false` is supported for additionalProperties and items only")
            return self._any()
        said = {key: value for key, value in schema.items() if key in KEYWORDS and key != "uniqueItems"}
        several = [key for key in said if key in _SEVERAL]
        if not several:
            return self._typed(said, path)
        key = several[0]
        beside = [other for other in said if other != key and not (other == "type" and key in ("enum", "const"))]
        if beside:
            raise _refused(f"{path}.{beside[0]}", f"not supported beside `{key}`")
        value = said[key]
        if key in ("enum", "const"):
            return self._values(value if key == "enum" else [value], said.get("type"), path)
        if key == "$ref":
            return self._reference(value)
        if key == "allOf" and len(value) > 1:
            raise _refused(f"{path}.allOf", "supported with one schema only")
        if key == "oneOf":
            self._refuse_overlap(value, f"{path}.oneOf")
        options = [self.schema(option, f"{path}.{key}[{i}]") for i, option in enumerate(value)]
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _any(self) -> Any:
        if not self._compact:
            return {}
        any_value = {"$ref": "#/$defs/any"}
        objects = {"type": "object", "additionalProperties": any_value}
        kinds = [{"type": name} for name in ("string", "number", "boolean", "null")]
        self.definitions["any"] = {"anyOf": [*kinds, {"type": "array", "items": any_value}, objects]}
        return any_value

    def _reference(self, reference: str) -> dict[str, Any]:
        if reference not in self._names:
            self._names[reference] = f"d{len(self._names)}"
            self._waiting.append(reference)
        return {"$ref": f"#/$defs/{self._names[reference]}"}

    def _values(self, values: Sequence[Any], types: Any, path: str) -> dict[str, Any]:
        names = [types] if isinstance(types, str) else types
        fitting = [value for value in values if names is None or any(_is(value, name) for name in names)]
        if not fitting:
            raise _refused(path, "no value fits the type")
        return {"enum": fitting}

    def _typed(self, said: Mapping[str, Any], path: str) -> Any:
        types = said.get("type")
        if types is None:
            # What is said without a type is of some types only; the others are left out, which is stricter.
            types = [name for name, own in _OF_TYPE.items() if own & said.keys() and name != "integer"]
            if not types:
                return self._any()
        names = list(dict.fromkeys([types] if isinstance(types, str) else types))
        made = [self._one_type(name, {k: said[k] for k in said if k in _OF_TYPE[name]}, path) for name in names]
        return made[0] if len(made) == 1 else {"anyOf": made}

    def _one_type(self, name: str, said: dict[str, Any], path: str) -> dict[str, Any]:
        match name:
            case "string":
                return self._string(said, path)
            case "integer" | "number":
                return _number(name, said, path)
            case "array":
                return self._array(said, path)
            case "object":
                return self._object(said, path)
            case _:
                return {"type": name}

    def _string(self, said: dict[str, Any], path: str) -> dict[str, Any]:
        kinds = [key for key in ("pattern", "format") if key in said]
        lengths = {key: int(said[key]) for key in ("minLength", "maxLength") if key in said}
        if lengths == {"minLength": 0}:
            lengths = {}
        if len(kinds) + bool(lengths) > 1:
            raise _refused(f"{path}.{kinds[0]}", "not supported beside other keywords for strings")
        if lengths.get("minLength", 0) > lengths.get("maxLength", math.inf):
            raise _refused(f"{path}.minLength", "is over maxLength: nothing fits")
        if "format" in said and said["format"] not in FORMATS:
            what = f"{said['format']!r} is not supported; supported: {', '.join(sorted(FORMATS))}"
            raise _refused(f"{path}.format", what)
        if "pattern" in said:
            return {"type": "string", "pattern": self._pattern(said["pattern"], f"{path}.pattern")}
        if lengths:
            # The library's own rule for lengths lets control characters through. Without escapes: a choice between
            # these and characters, repeated, takes a thousand times as long in a step.
            most = lengths.get("maxLength", "")
            bounded = f"^{plain_character()}{{{lengths.get('minLength', 0)},{most}}}$"
            return {"type": "string", "pattern": bounded}
        return {"type": "string", **said}

    def _pattern(self, pattern: str, path: str) -> str:
        return json_pattern(pattern, path, self._max_repeat)

    def _array(self, said: dict[str, Any], path: str) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "array"}
        for key in ("minItems", "maxItems"):
            if key in said:
                made[key] = int(said[key])
        if made.get("minItems", 0) > made.get("maxItems", math.inf):
            raise _refused(f"{path}.minItems", "is over maxItems: nothing fits")
        prefix = said.get("prefixItems", [])
        if prefix:
            made["prefixItems"] = [self.schema(item, f"{path}.prefixItems[{i}]") for i, item in enumerate(prefix)]
            if made.get("maxItems", math.inf) < len(prefix):
                raise _refused(f"{path}.maxItems", "supported where it is no less than prefixItems has")
        items = said.get("items", True)
        made["items"] = False if items is False else self.schema(items, f"{path}.items")
        if items is False and made.get("minItems", 0) > len(prefix):
            raise _refused(f"{path}.minItems", "is over what prefixItems has: nothing fits")
        return made

    def _object(self, said: dict[str, Any], path: str) -> dict[str, Any]:
        properties = dict(said.get("properties", {}))
        more = said.get("additionalProperties", True)
        required = list(dict.fromkeys(said.get("required", ())))
        least, most = int(said.get("minProperties", 0)), said.get("maxProperties")
        made: dict[str, Any] = {"type": "object"}
        if most is not None:
            made["maxProperties"] = int(most)
        if least:
            made["minProperties"] = least
        maps = [key for key in ("patternProperties", "propertyNames") if key in said]
        if maps:
            return {**made, **self._map(said, maps, properties, required, least, more, path)}
        if properties or required:
            if properties and more is not True and more is not False and more != {}:
                raise _refused(f"{path}.additionalProperties", "a schema is supported without `properties` only")
            for name in required:
                if name not in properties and more is False:
                    raise _refused(f"{path}.required", f"{name!r} is no property: nothing fits")
                properties.setdefault(name, more)
            kept = {name: item for name, item in properties.items() if item is not False or name in required}
            made["properties"] = {n: self.schema(item, f"{path}.properties.{n}") for n, item in kept.items()}
            made["additionalProperties"] = False
            if required:
                made["required"] = required
            if least > len(kept) or (most is not None and most < len(required)):
                raise _refused(path, "no number of properties fits")
            return made
        if least > 1:
            raise _refused(f"{path}.minProperties", "over 1 is supported for named properties only")
        made["additionalProperties"] = False if more is False else self.schema(more, f"{path}.additionalProperties")
        if more is False and least:
            raise _refused(f"{path}.minProperties", "no property may come: nothing fits")
        return made

    def _map(self, said: Mapping[str, Any], maps: list[str], properties: Mapping[str, Any], required: list[str],
             least: int, more: Any, path: str) -> dict[str, Any]:  # fmt: skip
        """Objects whose names follow a pattern."""
        if len(maps) > 1 or properties or required or least > 1:
            raise _refused(f"{path}.{maps[0]}", "not supported beside properties, required and minProperties over 1")
        if maps == ["propertyNames"]:
            raise _refused(f"{path}.propertyNames", "not supported")
        patterns = said["patternProperties"]
        if len(patterns) != 1:
            raise _refused(f"{path}.patternProperties", "supported with one pattern only")
        ((pattern, item),) = patterns.items()
        here = f"{path}.patternProperties.{pattern}"
        return {"patternProperties": {self._pattern(pattern, here): self.schema(item, here)},
                "additionalProperties": False}  # fmt: skip

    def _refuse_overlap(self, options: Sequence[Any], path: str) -> None:
        """`oneOf` is `anyOf` where no value fits two of them: other types, or other values of a required property."""
        for i, first in enumerate(options):
            for j in range(i):
                if not self._apart(first, options[j]):
                    raise _refused(f"{path}[{i}]", f"may fit what [{j}] fits; say anyOf, or tell them apart by type or "
                                   "by a required property with `const`")  # fmt: skip

    def _apart(self, first: Any, second: Any) -> bool:
        first, second = self._target(first), self._target(second)
        if not isinstance(first, Mapping) or not isinstance(second, Mapping):
            return False
        mine, theirs = _values_of(first), _values_of(second)
        if mine is not None and theirs is not None:
            return not mine & theirs
        types, others = _types_of(first), _types_of(second)
        if types and others and not types & others:
            return True
        if types != {"object"} or others != {"object"}:
            return False
        for name in set(first.get("required", ())) & set(second.get("required", ())):
            mine = _values_of(self._target(first.get("properties", {}).get(name)))
            theirs = _values_of(self._target(second.get("properties", {}).get(name)))
            if mine is not None and theirs is not None and not mine & theirs:
                return True
        return False

    def _target(self, schema: Any) -> Any:
        while isinstance(schema, Mapping) and "$ref" in schema:
            schema = resolve(self._root, schema["$ref"])  # circles were refused
        return schema


def _number(name: str, said: Mapping[str, Any], path: str) -> dict[str, Any]:
    """At most one bound to a side; whole ones for integers."""
    made: dict[str, Any] = {"type": name}
    for key, value in said.items():
        if abs(value) > _MOST:
            raise _refused(f"{path}.{key}", f"bounds of more than {_MOST} are not supported")
    if name == "integer":
        lows = [math.ceil(said["minimum"])] if "minimum" in said else []
        lows += [math.floor(said["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in said else []
        highs = [math.floor(said["maximum"])] if "maximum" in said else []
        highs += [math.ceil(said["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in said else []
        made.update({"minimum": max(lows)} if lows else {}, **({"maximum": min(highs)} if highs else {}))
        if lows and highs and max(lows) > min(highs):
            raise _refused(path, "no number fits the bounds")
        return made
    if said:
        raise _refused(f"{path}.{next(iter(said))}", "bounds are supported for integers only")
    return made


def _types_of(schema: Schema) -> set[str]:
    """Types of which alone a value can be; empty: not known. A whole number is a number."""
    types = schema.get("type")
    names = {types} if isinstance(types, str) else set(types or ())
    return {"number" if name == "integer" else name for name in names}


def _values_of(schema: Any) -> set[str] | None:
    """The only values that fit, as JSON; None where they are not listed."""
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return {_canonical(schema["const"])}
    return {_canonical(value) for value in schema["enum"]} if "enum" in schema else None


def _canonical(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _is(value: Any, name: str) -> bool:
    match name:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, Mapping)
        case "integer":
            return not isinstance(value, bool) and isinstance(value, int | float) and value == int(value)
        case _:
            return not isinstance(value, bool) and isinstance(value, int | float)


def _refused(path: str, what: str) -> RequestError:
    return RequestError(f"{path}: {what} (grammar backend xgrammar)")
