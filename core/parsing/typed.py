"""Parameters that a model writes as bare text, turned into JSON by the tool's schema.

The rule, for a parameter's text and the JSON types that its schema allows:

1. Only strings allowed: the text as it is.
2. Otherwise, white space around it aside, the text is JSON of an allowed type: that. Where several types are allowed,
   everything goes before string: "3" is a number for `["string", "integer"]`.
3. Spellings of Python: True, False and None where a boolean or null is allowed; lists, tuples and dicts where an array
   or object is; 3.0 is 3 where an integer is and a number is not.
4. An `enum` or `const` decides for the member that the text spells.
5. What fits nothing stays a string, for whoever checks the schema to complain about.

A schema that says nothing of the type ("any"), and a parameter that no schema knows: JSON if the text is, else a
string. Numbers keep the digits that the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.parsing.python_calls import python_value

ALL = frozenset(("string", "integer", "number", "boolean", "null", "object", "array"))
_MAX_REFERENCES = 32  # each leading to the next
_MAX_SCHEMAS = 256  # looked at for one parameter
_SPELLINGS = {"True": "true", "False": "false", "None": "null", "TRUE": "true", "FALSE": "false"}


def resolve(schema: Any, root: Any) -> Any:
    """`schema` with local references ("#/$defs/x") followed; {} where one leads nowhere or in a circle."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        schema = root if reference.startswith("#") else {}
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(part, {}) if isinstance(schema, Mapping) else {}
    return {}


def types_of(schema: Any, root: Any = None) -> frozenset[str]:
    """JSON types that values of `schema` may have; root: where references begin. All of them if it does not say."""
    return _types(schema, schema if root is None else root, [_MAX_SCHEMAS])


def _types(schema: Any, root: Any, left: list[int]) -> frozenset[str]:
    """left: how many schemas may still be looked at; references can make a small text a very large tree."""
    schema = resolve(schema, root)
    left[0] -= 1
    if not isinstance(schema, Mapping) or left[0] < 0:
        return ALL
    stated, members = schema.get("type"), enum_of(schema)
    types = (
        ALL.intersection([stated] if isinstance(stated, str) else map(str, stated) if isinstance(stated, list) else ALL)
        or ALL
    )
    if types == ALL and members is not None:
        types = frozenset(map(_type_of, members))
    elif types == ALL and "properties" in schema:
        types = frozenset(("object",))
    elif types == ALL and "items" in schema:
        types = frozenset(("array",))
    for key in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(key)
        if isinstance(branches, list) and branches:
            each = [_types(branch, root, left) for branch in branches]
            types &= frozenset.intersection(*each) if key == "allOf" else frozenset.union(*each)
    return (types | {"null"} if schema.get("nullable") is True else types) or ALL


def enum_of(schema: Any) -> list[Any] | None:
    """The values that a schema lists, or None if it lists none."""
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    members = schema.get("enum")
    return members if isinstance(members, list) and members else None


def with_definitions(schema: Any, root: Any) -> Any:
    """A parameter's schema by itself, with what its references lead to."""
    if not isinstance(schema, Mapping) or not isinstance(root, Mapping):
        return schema
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return {**definitions, **schema}


class Typing:
    """How texts of one parameter become JSON."""

    def __init__(self, schema: Any, root: Any = None) -> None:
        """schema: of the parameter, {} if there is none. root: the tool's `parameters`, where references begin."""
        root = schema if root is None else root
        resolved = resolve(schema, root)
        self.types = types_of(schema, root)
        self._members = enum_of(resolved)

    @property
    def as_written(self) -> bool:
        """Whether every text is a string, so that its pieces can be given out as they come."""
        return self.types == {"string"}

    @property
    def as_written_but_null(self) -> bool:
        """Whether every text but "null" (and None) is a string."""
        return self.types == {"string", "null"} and self._members is None

    def to_json(self, text: str, *, quoted: bool = False) -> str:
        """The JSON of a whole text. quoted: strings may be written as JSON as well. Never raises."""
        if self.as_written and not quoted:
            return json.dumps(text, ensure_ascii=False)
        bare = text.strip()
        if self._members is not None:
            for member in self._members:
                if isinstance(member, str):
                    if text == member:
                        return json.dumps(member, ensure_ascii=False)
                elif _spells(bare, member):
                    return json.dumps(member)
        for spelled in (json_value(bare), _python(bare, self.types)):
            if spelled is not None and (fitting := self._fitting(*spelled, quoted)) is not None:
                return fitting
        return json.dumps(text, ensure_ascii=False)

    def _fitting(self, text: str, value: Any, quoted: bool) -> str | None:
        """The JSON `text`, which means `value`, if that is of a type that is allowed."""
        kind = _type_of(value)
        if kind in self.types and (kind != "string" or quoted or self.types == ALL):
            return text
        if kind == "integer" and "number" in self.types:
            return text
        if kind == "number" and "integer" in self.types and float(value).is_integer():
            return str(int(value))
        return None


ANY = Typing({})
TEXT = Typing({"type": "string"})


def parameter_typings(parameters: Any) -> dict[str, Typing]:
    """Key -> how its text becomes JSON, of a tool's `parameters` schema."""
    properties = resolve(parameters, parameters).get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {str(key): Typing(schema, parameters) for key, schema in properties.items()}


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def json_value(text: str) -> tuple[str, Any] | None:
    """(the text itself, its value) if it is JSON; NaN and Infinity are none. Never raises."""
    try:
        return text, json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _python(text: str, types: frozenset[str]) -> tuple[str, Any] | None:
    """(JSON, value) of a text in Python's spelling."""
    if types == ALL:
        return None
    if text in _SPELLINGS:
        return json_value(_SPELLINGS[text])
    if types & {"array", "object"} and text[:1] in ("[", "{", "("):
        written = python_value(text)
        return json_value(written) if written is not None else None
    return None


def _spells(text: str, member: Any) -> bool:
    found = json_value(_SPELLINGS.get(text, text))
    return found is not None and type(found[1]) is type(member) and found[1] == member
