"""What the structure of a parser with JSON bodies allows is read by its stream as calls."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from core.interfaces.grammar import GrammarSource, Structure, Vocabulary
from core.interfaces.parsers import Tool, ToolChoice, ToolParser
from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.testing.contracts.tool_parser_streams import parse

PARSERS = (
    "hermes", "trinity", "llama3", "mistral", "deepseekv3", "deepseekv31", "kimi_k2", "gigachat3", "cohere", "granite",
    "granite4", "granite-20b-fc", "phi4", "internlm", "gpt-oss",
)  # fmt: skip
CHOICES = [ToolChoice(mode, parallel) for mode in ("required", "auto") for parallel in (True, False)]  # type: ignore[arg-type]
EOS = 256
VOCABULARY = Vocabulary((*(bytes([byte]) for byte in range(256)), b""), (EOS,))


def tool(name: str, properties: Mapping[str, Any] | None) -> Tool:
    function: dict[str, Any] = {"name": name}
    if properties is not None:
        function["parameters"] = {
            "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        }  # fmt: skip
    return {"type": "function", "function": function}


TOOLS = (tool("get_weather", {"city": {"type": "string"}, "days": {"type": "integer"}}), tool("send-all.now", None))
ARGUMENTS: dict[str, Any] = {"get_weather": {"city": 'K\\ö"ln</tool_call>', "days": 3}, "send-all.now": {"a": [{}]}}


def load(name: str) -> ToolParser:
    parser = Catalog.scan().load("tool_parsers", name)()
    assert isinstance(parser, ToolParser)
    return parser


def write(node: Structure, choose: random.Random) -> str:
    """Some text that a structure allows; what follows a schema is told by its `properties`."""
    kind = node["type"]
    if kind == "const_string":
        return str(node["value"])
    if kind == "json_schema":
        name = "get_weather" if "properties" in node["json_schema"] else "send-all.now"
        return json.dumps(ARGUMENTS[name], ensure_ascii=False)
    if kind == "regex":
        assert node["pattern"] == "[0-9]+"
        return str(choose.randrange(20))
    if kind == "sequence":
        return "".join(write(element, choose) for element in node["elements"])
    if kind == "or":
        return write(choose.choice(node["elements"]), choose)
    if kind == "tag":
        return f"{node['begin']}{write(node['content'], choose)}{node['end']}"
    number = 1 if node["stop_after_first"] else choose.randint(1, 3)
    tags = [write(choose.choice(node["tags"]), choose) for _ in range(number)]
    if kind == "tags_with_separator":
        return str(node["separator"]).join(tags)
    assert kind == "triggered_tags", kind
    assert all(any(tag["begin"].startswith(trigger) for trigger in node["triggers"]) for tag in node["tags"])
    return "Text 1 < 2. " + " And\nmore ".join(tags)


def named(text: str) -> list[str]:
    """The tools' names in order of their appearance, each of which stands once in a call."""
    places = [(text.find(name, at), name) for name in ARGUMENTS for at in range(len(text)) if text.startswith(name, at)]
    return [name for _, name in sorted(places)]


@pytest.mark.parametrize("name", PARSERS)
def test_what_a_structure_allows_is_read_as_calls(name: str) -> None:
    parser = load(name)
    for choice in CHOICES:
        structure = parser.structure(TOOLS, choice)
        assert structure is not None
        for seed in range(12):
            text = write(structure, random.Random(seed))
            result = parse(parser.stream(TOOLS), [text])
            assert [(called, json.loads(given)) for called, given in result.calls] == [
                (wanted, ARGUMENTS[wanted]) for wanted in named(text)
            ], text
            assert result.calls
            assert len(result.calls) == 1 or choice.parallel
            if choice.mode == "required":
                assert result.content == "", text
            else:
                assert "".join(result.content.split()) == "Text1<2." + "Andmore" * (text.count("more")), text


@pytest.mark.parametrize("name", PARSERS)
def test_without_tools_there_is_no_structure(name: str) -> None:
    assert load(name).structure((), ToolChoice("required")) is None


@pytest.mark.parametrize("name", PARSERS)
def test_grammars_take_what_is_written_and_nothing_else(name: str) -> None:
    """With the grammar backend that core chooses: whole texts end, names and arguments that no tool has do not pass."""
    catalog = Catalog.scan()
    record = next((r for r in catalog.of_kind("grammar") if r.name == "llguidance" and r.state == "available"), None)
    if record is None:
        pytest.skip("plugin-llguidance is not installed")
    backend = catalog.load("grammar", record.full_name)(VOCABULARY, plugin_context(record, {}))
    parser = load(name)
    for choice in CHOICES:
        structure = parser.structure(TOOLS[:1], choice)
        assert structure is not None
        grammar = backend.compile(GrammarSource("structural_tag", json.dumps(structure)))
        text = write(structure, random.Random(1))
        assert takes(grammar.matcher(), text), text
        assert not takes(grammar.matcher(), text.replace("get_weather", "get_whether")), text
        assert not takes(grammar.matcher(), text.replace('"days": 3', '"days": "x"')), text
        if choice.mode == "auto":
            assert takes(grammar.matcher(), "No call at all.")
        else:
            assert not takes(grammar.matcher(), "No call at all.")


def takes(matcher: Any, text: str) -> bool:
    tokens: Sequence[int] = [*text.encode(), EOS]
    return all(matcher.accept(token) for token in tokens)
