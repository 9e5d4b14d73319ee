"""Structures, choices, EBNF, expressions and schemas: what is refused, and where it says that is."""

from __future__ import annotations

from typing import Any

import pytest

from core.interfaces.errors import RequestError
from core.parsing.ebnf import is_recursive, parse_ebnf
from core.parsing.regexes import check_bounds, whole_text
from core.parsing.schema_rules import SchemaLimits, SchemaRules, checked_schema, subschemas
from core.parsing.structure_tree import choices_of, structure_of

TAG = {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}
RULES = SchemaRules("mine", frozenset({"type", "properties", "items", "anyOf", "$ref", "enum", "maxLength", "pattern"}))


def test_defaults_are_filled_in() -> None:
    tree = structure_of({"type": "triggered_tags", "triggers": ["<a"], "tags": [TAG]})
    assert tree["at_least_one"] is False
    assert tree["stop_after_first"] is False
    assert structure_of('{"type": "any_text"}') == {"type": "any_text"}
    assert structure_of({"type": "structural_tag", "format": TAG}) == TAG


def test_the_older_form() -> None:
    tree = structure_of(
        {"structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f"],
         "at_least_one": True}
    )  # fmt: skip
    content = {"type": "json_schema", "json_schema": {"type": "integer"}}
    assert tree["tags"] == [{"type": "tag", "begin": "<f>", "content": content, "end": "</f>"}]
    assert tree["at_least_one"] is True
    assert tree["triggers"] == ["<f"]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"type": "sequence", "elements": [{"type": "any_text"}, {"type": "tag", "begin": 1}]}, "$.elements[1].begin"),
        ({"type": "or", "elements": []}, "$.elements"),
        ({"format": {"type": "regex"}}, "$.format: `pattern`"),
        ({**TAG, "content": {"type": "no"}}, "$.content.type"),
        ({"type": "triggered_tags", "triggers": ["<b"], "tags": [TAG]}, "$.tags[0].begin"),
        ({"type": "triggered_tags", "triggers": ["<a", "<c"], "tags": [TAG]}, "$.triggers[1]"),
        ({"type": "const_string", "value": "a\0"}, "$.value"),
        ({"type": "any_text", "excludes": []}, "$.excludes"),
        ({"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}, "$.structures[0]: `schema`"),
        ("[1", "no JSON"),
        (3, "$: a structural tag is an object"),
    ],
)
def test_structures_that_are_wrong(value: Any, place: str) -> None:
    with pytest.raises(RequestError) as caught:
        structure_of(value)
    assert place in caught.value.message


def test_structures_have_a_depth() -> None:
    tree: Any = {"type": "any_text"}
    for _ in range(100):
        tree = {"type": "sequence", "elements": [tree]}
    with pytest.raises(RequestError, match="too large"):
        structure_of(tree)


def test_choices() -> None:
    assert choices_of('["a", "b", "a"]') == ("a", "b")
    for text in ("[]", "{}", '["a", ""]', '["a", 1]', "a"):
        with pytest.raises(RequestError):
            choices_of(text)


def test_ebnf() -> None:
    rules = parse_ebnf('root ::= "a" | list # all\nlist ::= "(" root\n  ")"')
    assert set(rules) == {"root", "list"}
    assert is_recursive(rules)
    assert not is_recursive(parse_ebnf('root ::= x x\nx ::= "a"'))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('root ::= "a', "line 1"),
        ('root ::= "a"\nother ::= [', "line 2"),
        ("root ::= missing", "missing"),
        ('start ::= "a"', "root"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
        ('root ::= "a" root', "without end"),
        ('root ::= "a"{3,2}', "before it begins"),
        ('root ::= "a"{99999}', "99999"),
        ('root ::= ("a"', "not closed"),
        ("root ::= [b-a]", "empty"),
        ('root ::= "\\q"', "escape"),
        ("root ::= *", "repeat"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "deeper"),
    ],
)
def test_ebnf_that_is_wrong(text: str, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_ebnf(text)
    assert told in caught.value.message


def test_anchors_of_whole_texts() -> None:
    assert whole_text("^ab$") == "ab"
    assert whole_text("^a|b$") == "a|b"
    assert whole_text("(a|^b)c$".replace("^", "")) == "(a|b)c"
    assert whole_text(r"[\^$]\$") == r"[\^$]\$"
    for pattern in ("a^b", "(^a)", r"a\b", "a{1,99999}", "a\0"):
        with pytest.raises(RequestError):
            whole_text(pattern)
    with pytest.raises(RequestError, match=r"\$\.x"):
        check_bounds("a{20}", path="$.x", max_repeat=10)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"age": {"pattern": 3}}}, "$.properties.age.pattern"),
        ({"items": {"minLength": 1}}, "$.items.minLength: `minLength` is not supported by the grammar backend mine"),
        ({"anyOf": [{}, {"not": {}}]}, "$.anyOf[1].not"),
        ({"items": [{}]}, "$.items"),
        ({"$ref": "other.json"}, "$.$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "x"}}}, "$.$defs.a.type"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "leads back"),
        ({"maxLength": 10**9}, "$.maxLength"),
        ({"maxLength": -1}, "$.maxLength"),
        ({"enum": []}, "$.enum"),
        ({"enum": ["a\0"]}, "$.enum[0]"),
        ({"$schema": "http://example.com/mine"}, "$.$schema"),
        ({"properties": {"a": {"$id": "x"}}}, "$.properties.a.$id"),
        ("{", "no JSON"),
        ('{"enum": [NaN]}', "NaN"),
        ([], "$: a schema"),
    ],
)
def test_schemas_that_are_wrong(schema: Any, place: str) -> None:
    with pytest.raises(RequestError) as caught:
        checked_schema(schema, RULES)
    assert place in caught.value.message


def test_schemas_that_are_right() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "x-order": 3, "unknown": {"not": 1},
        "properties": {"not": {"$ref": "#"}, "a/b": {"items": {"$ref": "#/properties/a~1b"}}}, "$defs": {"u": 3},
    }  # fmt: skip
    assert checked_schema(schema, RULES) == schema
    assert [path for path, _ in subschemas({"items": {"anyOf": [{}]}})] == ["$.items.anyOf[0]", "$.items", "$"]


def test_schemas_have_a_size() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"items": deep}
    for schema, limits in (
        (deep, SchemaLimits(max_depth=50)),
        ({"anyOf": [{"type": "null"} for _ in range(9)]}, SchemaLimits(max_nodes=5)),
        ({"enum": list(range(9))}, SchemaLimits(max_values=5)),
        ('{"title": "long"}', SchemaLimits(max_bytes=5)),
    ):
        with pytest.raises(RequestError):
            checked_schema(schema, SchemaRules("mine", RULES.keywords, limits=limits))
