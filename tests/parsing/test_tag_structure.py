"""What a structure allows, the parser of the same format reads as calls."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from core.interfaces.grammar import Structure
from core.interfaces.parsers import Tool, ToolChoice, ToolParser
from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.testing.contracts.tool_parser_streams import Parsed, cut, parse

NAMES = [
    "qwen3_coder", "step3", "step3p5", "mimo", "glm45", "glm47", "minimax-m2", "deepseekv32", "pythonic",
    "llama4_pythonic",
]  # fmt: skip
PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "unit": {"enum": ["celsius", "kelvin"]},
    "mode": {"enum": [1, "two", None]},
    "places": {"type": "array", "items": {"$ref": "#/$defs/place"}},
    "share": {"type": ["number", "boolean"]},
    "any": {},
}
DEFINITIONS = {"place": {"type": "object", "properties": {"</parameter>": {"type": "string"}}}}
TOOLS: list[Tool] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object", "properties": PROPERTIES, "required": ["unit", "city", "days"], "$defs": DEFINITIONS,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "opt", "parameters": {"properties": PROPERTIES, "$defs": DEFINITIONS}}},
]  # fmt: skip
TEXTS = [
    "",
    "x",
    "Köln",
    '"quoted"',
    "<b>",
    "line\nline",
    " null",
    "</para",
    "{'a'",
    "a <parameter",
    "\\n",
    "<arg_key>",
]
JSON_VALUES = {
    "integer": [0, -3, 10**20],
    "number": [0.5, 3],
    "boolean": [True, False],
    "null": [None],
    "array": [[], [{"</parameter>": "</parameter> x"}, {"a": 1}]],
    "object": [{}, {"a": {"b": '"'}}],
    "string": ["", "é\n\"'\\/🎉", "</parameter>", "</arg_value> x", "null"],
}


class Writer:
    """Writes texts of a structure, choosing by `choose`."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)

    def write(self, node: Structure, forbidden: str = "") -> str:
        """forbidden: what ends a text that may be anything."""
        return str(getattr(self, f"_{node['type']}")(node, forbidden))

    def _const_string(self, node: Structure, _: str) -> str:
        assert node["value"], "an empty constant"
        return node["value"]

    def _regex(self, node: Structure, _: str) -> str:
        return self.choose.choice({"\\n?": ["", "\n"], " ?": ["", " "], "\\n": ["\n"]}[node["pattern"]])

    def _any_text(self, _: Structure, forbidden: str) -> str:
        return self.choose.choice([text for text in TEXTS if not forbidden or forbidden not in text])

    def _json_schema(self, node: Structure, _: str) -> str:
        schema = node["json_schema"]
        stated = schema.get("type") or [branch["type"] for branch in schema.get("anyOf", ())] or list(JSON_VALUES)
        kind = self.choose.choice(stated if isinstance(stated, list) else [stated])
        values = schema.get("enum") or JSON_VALUES[kind]
        if "items" in schema:
            assert schema["$defs"] == DEFINITIONS
        return json.dumps(self.choose.choice(values), ensure_ascii=self.choose.random() < 0.5)

    def _sequence(self, node: Structure, forbidden: str) -> str:
        return "".join(self.write(element, forbidden) for element in node["elements"])

    def _or(self, node: Structure, forbidden: str) -> str:
        return self.write(self.choose.choice(node["elements"]), forbidden)

    def _tag(self, node: Structure, _: str) -> str:
        return node["begin"] + self.write(node["content"], node["end"]) + node["end"]

    def _tags_with_separator(self, node: Structure, forbidden: str) -> str:
        number = 1 if node["stop_after_first"] else self.choose.randint(1, 3)
        assert node["at_least_one"]
        return node["separator"].join(self.write(self.choose.choice(node["tags"]), forbidden) for _ in range(number))

    def _triggered_tags(self, node: Structure, forbidden: str) -> str:
        text = self.choose.choice(["Hm.", "a < b\n\n", "Köln"])
        assert all(any(tag["begin"].startswith(trigger) for trigger in node["triggers"]) for tag in node["tags"])
        assert not any(trigger in text for trigger in node["triggers"])
        return text + self.write(self.choose.choice(node["tags"]), forbidden)


def parser(name: str) -> ToolParser:
    catalog = Catalog.scan()
    made = catalog.load("tool_parsers", name)(plugin_context(catalog.record("tool_parsers", name), {}))
    assert isinstance(made, ToolParser)
    return made


def num_calls(text: str) -> int:
    """Calls in a text that a `Writer` wrote, by what no value of it holds."""
    return sum(text.count(mark) for mark in ("get_weather", "now", "opt"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("required", parallel=False), ToolChoice("auto")])
def test_what_is_forced_is_read(name: str, choice: ToolChoice) -> None:
    made = parser(name)
    structure = made.structure(TOOLS, choice)
    assert structure is not None
    for seed in range(120):
        text = Writer(seed).write(structure)
        result = parse(made.stream(TOOLS), [text])
        assert len(result.calls) == num_calls(text), text
        assert parse(made.stream(TOOLS), cut(text, range(0, len(text), 7))) == result
        if choice.mode == "required":
            assert not result.content.strip(), f"{result.content!r} is left of {text!r}"
        if not choice.parallel:
            assert len(result.calls) == 1
        for called, arguments in result.calls:
            check(called, json.loads(arguments), text)


def check(name: str, values: dict[str, Any], text: str) -> None:
    """Arguments follow the schema."""
    assert set(values) <= ({} if name == "now" else PROPERTIES).keys()
    if name == "get_weather":
        assert values.keys() >= {"unit", "city", "days"}, text
    types = {"city": str, "days": int, "note": (str, type(None)), "places": list, "share": (float, int, bool)}
    for key, value in values.items():
        assert isinstance(value, types.get(key, object)), f"{key} is {value!r} in {text!r}"
    assert values.get("unit", "kelvin") in ("celsius", "kelvin")
    assert values.get("mode") in (1, "two", None)


def test_one_tool_is_forced_alone() -> None:
    """A named tool comes as the only one."""
    for name in NAMES:
        made = parser(name)
        structure = made.structure(TOOLS[1:2], ToolChoice("required", parallel=False))
        assert structure is not None
        result = parse(made.stream(TOOLS), [Writer(0).write(structure)])
        assert result == Parsed(calls=(("now", "{}"),))
