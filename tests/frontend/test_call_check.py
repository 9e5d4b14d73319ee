"""What is told of a call's arguments agrees with an independent validator of JSON Schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.frontend.call_check import MAX_PROBLEMS, check_call
from core.frontend.tool_policy import ToolPolicy
from core.interfaces.parsers import ToolCallDelta

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.sampled_from([0.5, 2.0]), st.text("ab", max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=5,
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "null", "object", "array"])


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    members = {
        "type": st.one_of(TYPES, st.lists(TYPES, min_size=1, max_size=2, unique=True)),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        "required": st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True),
        "additionalProperties": inner,
        "items": inner,
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), st.integers(-2, 4)),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), st.integers(0, 3)),
        **dict.fromkeys(("anyOf", "allOf"), st.lists(inner, min_size=1, max_size=2)),
        "$ref": st.sampled_from(["#/$defs/one", "#"]),
    }
    return st.lists(st.sampled_from(sorted(members)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: members[name] for name in names})
    )


SCHEMAS = st.recursive(st.one_of(st.booleans(), TYPES.map(lambda name: {"type": name})), _nested, max_leaves=6)


def _endless(schema: Any) -> bool:
    return '"$ref": "#"' in json.dumps(schema)


@settings(max_examples=500, deadline=None)
@given(schema=SCHEMAS, one=SCHEMAS, value=st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3))
def test_agrees_with_a_validator(schema: Any, one: Any, value: dict[str, Any]) -> None:
    if isinstance(schema, dict):
        schema = {**schema, "$defs": {"one": one}}
    found = check_call(0, json.dumps(value), schema)
    if _endless(schema) or '"$ref"' in json.dumps(one):
        return  # a reference in a circle: it is enough that we came back
    assert bool(found) == (not jsonschema.Draft202012Validator(schema).is_valid(value)), (found, schema, value)
    assert len(found) <= MAX_PROBLEMS


@pytest.mark.parametrize(
    ("arguments", "path", "message"),
    [
        ('{"city": 3}', "$.city", "is 3; it must be of type string"),
        ("{}", "$.city", "is missing"),
        ('{"city": "x", "days": [1, "y"]}', "$.days[1]", 'is "y"; it must be of type integer'),
        ('{"city": "x", "other": 1}', "$.other", "is not allowed"),
        ('{"city": "x", "unit": "K"}', "$.unit", 'is "K"; it must be one of ["C", "F"]'),
        ('{"city": ""}', "$.city", 'is ""; minLength is 1'),
        ('{"city": "x', "$", "the arguments are no JSON"),
        ("[1]", "$", "the arguments are no object"),
    ],
)
def test_what_is_told(arguments: str, path: str, message: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1},
            "days": {"type": "array", "items": {"type": "integer"}},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    (problem,) = check_call(2, arguments, schema)
    assert (problem.index, problem.path, problem.message) == (2, path, message)


def test_schemas_that_are_none_and_endless_ones() -> None:
    for schema in (None, "x", [], {"type": 3}, {"properties": []}, {"required": "a"}, {"enum": 3}, {"anyOf": [3]}):
        assert check_call(0, '{"a": 1}', schema) == []
    tree = {"properties": {"a": {"$ref": "#"}}, "anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
    check_call(0, '{"a": {"a": {}}}', tree)
    check_call(0, '{"a":' * 300 + "1" + "}" * 300, {"additionalProperties": {"$ref": "#"}})


def test_the_policy_checks_calls_that_the_client_gets() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}},
        {"type": "function", "function": {"name": "g"}},
    ]
    policy = ToolPolicy(tools)
    policy.apply([ToolCallDelta(0, "g", "{}"), ToolCallDelta(1, "unknown", "{"), ToolCallDelta(2, "f", '{"a": ')])
    policy.apply([ToolCallDelta(2, arguments='"x"}')])
    (problem,) = policy.problems()
    assert (problem.index, problem.path) == (1, "$.a")
