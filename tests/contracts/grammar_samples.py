"""Grammars of every kind with texts, for the suites of the grammar backends of this repository."""

from __future__ import annotations

import json
from typing import Any

from core.interfaces.grammar import GrammarSource
from core.testing.contracts.grammar import GrammarSample

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "tags": {"type": "array"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def schema(value: Any, accepts: tuple[str, ...], rejects: tuple[str, ...] = ()) -> GrammarSample:
    return GrammarSample(GrammarSource("json_schema", json.dumps(value)), accepts, rejects)


SAMPLES = (
    GrammarSample(
        GrammarSource("choice", '["yes", "yesterday", "no", "中文", "a \\"b\\"\\n"]'),
        accepts=("yes", "yesterday", "no", "中文", 'a "b"\n'),
        rejects=("", "ye", "yess", "maybe", "中"),
    ),
    GrammarSample(GrammarSource("regex", "(no|[a-c]{2,3}) [0-9]+"), ("no 12", "ab 0"), ("a 1", "abca 1", "no 1 ")),
    GrammarSample(GrammarSource("regex", "^中[^a]?$"), ("中", "中b", "中é"), ("中a", "b")),
    GrammarSample(
        GrammarSource("ebnf", 'root ::= "a" [0-9]+ | other\nother ::= "中"* "!"'), ("a12", "!", "中中!"), ("a",)
    ),
    GrammarSample(
        GrammarSource("ebnf", 'root ::= item ("," item)* # a list\nitem ::= [a-z]+ | "(" root ")"'),
        ("ab,(c,(d))", "no"),
        ("(", "(a", "a,,b", ""),
    ),
    GrammarSample(GrammarSource("json_object"), ('{"a": [1, true, null, "中"]}', "{}"), ("[]", "12", '{"a"}', "{")),
    schema(
        PERSON, ('{"name": "ab", "age": 12}', '{"name":"","age":0,"tags":[]}'), ('{"name": "ab"}', '{"age": 1}', "{}")
    ),
    schema(TREE, ('{"v":1,"kids":[{"v":2}]}', '{"v": 1}'), ('{"kids":[]}', '{"v":1,"kids":[1]}')),
    schema({"type": "string", "maxLength": 3}, ('"yes"', '"中"', '""'), ('"null"', "yes")),
    schema({"enum": ["yes", 12, None, {"a": True}]}, ('"yes"', "12", "null"), ('"no"', "13")),
    schema(
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ("[true, false]",), ("[]", "[1]")
    ),
    schema(
        {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 5, "maximum": 12}]}, ("null", "12"), ("4", "13")
    ),
)
COMPACT_SAMPLES = (
    *(sample for sample in SAMPLES if sample.source.kind not in ("json_schema", "json_object")),
    GrammarSample(GrammarSource("json_object"), ('{"a":[1,true],"b":"c d"}', "{}"), ('{"a": 1}', "{ }", '{"a":1 }')),
    schema(PERSON, ('{"name":"a b","age":0}',), ('{"name": "ab","age":0}', '{"name":"ab", "age":0}')),
    schema({"type": "array", "items": {"enum": [1, "yes"]}}, ('[1,"yes"]', "[]"), ("[1, 1]", "[ ]")),
)
REFUSED_SCHEMAS: tuple[Any, ...] = (
    {"type": "object", "properties": {"a": {"type": "array", "contains": {"type": "integer"}}}},
    {"not": {"type": "string"}},
    {"type": "string", "format": "no-such-format"},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "#/$defs/missing"},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "strin"},
    {"if": {"type": "string"}, "then": {"maxLength": 2}},
    {"type": "string", "minLength": 1_000_000_000},
    {"type": "object", "additionalProperties": {"type": "object", "minProperties": 2}},
    {"x-guidance": {"lenient": True}, "type": "string"},
    False,
)
UNSUPPORTED = (
    *(GrammarSource("json_schema", json.dumps(value)) for value in REFUSED_SCHEMAS),
    GrammarSource("json_schema", "[" * 100_000),
    GrammarSource("json_schema", '{"type": "string", "pattern": "a\\u0000"}'),
    GrammarSource("json_schema", '{"type": "string", "pattern": "(unclosed"}'),
    GrammarSource("regex", "a\0b"),
    GrammarSource("regex", "a{1,999999999}"),
    GrammarSource("regex", "(?=a)b"),
    GrammarSource("regex", "a\\b"),
    GrammarSource("ebnf", 'root ::= "a\0"'),
    GrammarSource("ebnf", "root ::= root"),
    GrammarSource("ebnf", 'root ::= "a"{1,999999999}'),
    GrammarSource("ebnf", 'rot ::= "a"'),
    GrammarSource("choice", '["a", 1]'),
    GrammarSource("choice", '["a\\u0000"]'),
    GrammarSource("structural_tag", '{"type": "sequence", "elements": []}'),
)
