"""Which grammar the fields of several dialects ask for, and what is wrong with some."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from core.frontend.structured import FIELDS, as_structure, asked_grammar, with_grammar
from core.interfaces.errors import RequestError
from core.interfaces.params import GrammarParams, SamplingParams

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
TAG = {"type": "tag", "begin": "<", "content": {"type": "any_text"}, "end": ">"}


class Person(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("given", "kind", "text", "param"),
    [
        ({"response_format": FORMAT}, "json_schema", TEXT, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        ({"json_schema": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA), "json_schema"),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": True}, "json_schema", "true", "guided_json"),
        ({"json_schema": "$$ANY$$"}, "json_schema", "{}", "json_schema"),
        ({"regex": "a+"}, "regex", "a+", "regex"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"ebnf": "root ::= x"}, "ebnf", "root ::= x", "ebnf"),
        ({"guided_grammar": "root ::= x"}, "ebnf", "root ::= x", "guided_grammar"),
        ({"guided_choice": ["a", "ü"]}, "choice", '["a","ü"]', "guided_choice"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["a"], "json": None}}, "choice", '["a"]', "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "g"}}, "ebnf", "g", "structured_outputs.grammar"),
        ({"structured_outputs": {"json_object": True}}, "json_object", "", "structured_outputs.json_object"),
    ],
)
def test_spellings(given: dict[str, Any], kind: str, text: str, param: str) -> None:
    assert asked_grammar(given) == GrammarParams(kind=kind, text=text, param=param)


def test_pydantic_models_are_schemas() -> None:
    made = asked_grammar({"json_schema": Person})
    assert made is not None
    assert json.loads(made.text) == Person.model_json_schema()


def test_nothing_asked() -> None:
    assert asked_grammar({"response_format": {"type": "text"}, "regex": None, "other": 1}) is None
    assert asked_grammar(dict.fromkeys(FIELDS, "")) is None
    sampling = SamplingParams()
    assert with_grammar(sampling, {}) is sampling
    assert with_grammar(sampling, {"regex": "a"}).grammar is not None


@pytest.mark.parametrize(
    "spelled",
    [
        {"structural_tag": TAG},
        {"structural_tag": json.dumps(TAG)},
        {"structural_tag": {"type": "structural_tag", "format": TAG}},
        {"response_format": {"type": "structural_tag", "format": TAG}},
        {"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", "format": TAG})}},
    ],
)
def test_structures_in_every_spelling(spelled: dict[str, Any]) -> None:
    made = asked_grammar(spelled)
    assert made is not None
    assert (made.kind, json.loads(made.text)) == ("structural_tag", TAG)


def test_the_older_spelling_of_structures() -> None:
    given = {
        "type": "structural_tag",
        "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
        "triggers": ["<f"],
    }
    made = asked_grammar({"response_format": given})
    assert made is not None
    content = {"type": "json_schema", "json_schema": SCHEMA}
    assert json.loads(made.text) == {
        "type": "triggered_tags", "triggers": ["<f"], "at_least_one": False, "stop_after_first": False,
        "tags": [{"type": "tag", "begin": "<f>", "content": content, "end": "</f>"}],
    }  # fmt: skip
    assert made.schemas == ("response_format",)
    made = asked_grammar({"structural_tag": {**given, "at_least_one": True, "stop_after_first": True}})
    assert made is not None
    read = json.loads(made.text)
    assert (read["at_least_one"], read["stop_after_first"]) == (True, True)


WRONG = [
    ({"response_format": {"type": "yaml"}}, "response_format.type", "'yaml'"),
    ({"response_format": {}}, "response_format.type", "None"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", "missing"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.format", "missing"),
    ({"json_schema": "{"}, "json_schema", "is no JSON"),
    ({"json_schema": "[1]"}, "json_schema", "must be a JSON schema"),
    ({"guided_json": {"a": object()}}, "guided_json", "cannot be written"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "not empty"),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
        "not su",
    ),
    ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, "response_format.schema", "not supported"),
    ({"response_format": {"type": "text", "json_schema": {"a": 1}}}, "response_format.json_schema", "not supported"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "grammar": "x"}}},
        "response_format.json_schema.grammar",
        "not supported",
    ),
    ({"ebnf": 3}, "ebnf", "must be a text"),
    ({"guided_choice": []}, "guided_choice", "list of texts"),
    ({"guided_choice": ["a", ""]}, "guided_choice", "list of texts"),
    ({"guided_choice": "ab"}, "guided_choice", "list of texts"),
    ({"structured_outputs": {}}, "structured_outputs", "must have one of"),
    ({"structured_outputs": []}, "structured_outputs", "must be an object"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "cannot be given together"),
    ({"structural_tag": "[]"}, "structural_tag", "must be an object"),
    ({"structural_tag": {"structures": [], "triggers": ["a"]}}, "structural_tag.structures", "list of objects"),
    (
        {"structural_tag": {"structures": [{"end": ""}], "triggers": ["a"]}},
        "structural_tag.structures[0].begin",
        "text",
    ),
    (
        {"structural_tag": {"structures": [{"begin": ""}], "triggers": ["a"]}},
        "structural_tag.structures[0].end",
        "text",
    ),
    ({"structural_tag": {"structures": [{"begin": "a"}]}}, "structural_tag.triggers", "list of texts"),
    (
        {"structural_tag": {"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"], "at_least_one": 1}},
        "structural_tag.at_least_one",
        "true or false",
    ),
]


@pytest.mark.parametrize(("given", "param", "told"), WRONG)
def test_wrong_values_are_named(given: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        asked_grammar(given)
    assert caught.value.param == param


VALUES = {
    **dict.fromkeys(FIELDS, "x"),
    "response_format": {"type": "json_object"},
    "guided_choice": ["x"],
    **dict.fromkeys(("json_schema", "guided_json", "structural_tag"), "{}"),
    "structured_outputs": {"regex": "x"},
}


@pytest.mark.parametrize("first", FIELDS)
def test_no_two_together(first: str) -> None:
    for second in FIELDS:
        if second != first:
            with pytest.raises(RequestError, match="cannot be given together") as caught:
                asked_grammar({first: VALUES[first], second: VALUES[second]})
            assert first in str(caught.value)
            assert second in str(caught.value)


def test_any_grammar_is_a_node() -> None:
    def node(**given: Any) -> Any:
        made = asked_grammar(given)
        assert made is not None
        return as_structure(made)

    assert node(json_schema=SCHEMA) == {"type": "json_schema", "json_schema": SCHEMA}
    assert node(response_format={"type": "json_object"})["json_schema"] == {"type": "object"}
    assert node(regex="a") == {"type": "regex", "pattern": "a"}
    assert node(ebnf="a") == {"type": "grammar", "grammar": "a"}
    assert [e["value"] for e in node(guided_choice=["a", "b"])["elements"]] == ["a", "b"]
    assert node(structural_tag=TAG) == TAG
