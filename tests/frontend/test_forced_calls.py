"""tool_choice: which calls it leaves, what holds answers to them, and reading calls forced as plain JSON."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tokenizers import byte_level_folder
from tiny_parsers import CallParser, ThinkParser

from core.frontend.chat import ChatRenderer, ChatRequest, Prompt
from core.frontend.forced_calls import JsonCalls, plain_structure, read_choice
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import RequestError
from core.interfaces.grammar import Structure
from core.interfaces.params import GrammarParams, SamplingParams
from core.interfaces.parsers import ParserStream, ToolChoice

HI = {"role": "user", "content": "Hi"}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, **({"parameters": parameters} if parameters is not None else {}), **more}
    return {"type": "function", "function": function}


TOOLS = [tool("f", {"type": "object", "title": "F"}), tool("g", {"type": "object", "title": "G"}), tool("h")]


class Structured(CallParser):
    """Says what it was asked."""

    def structure(self, tools: Any, choice: ToolChoice) -> Structure:
        schemas = [
            {"type": "json_schema", "json_schema": t["function"].get("parameters") or {}, "for": t["function"]["name"]}
            for t in tools
        ]
        return {"type": "or", "elements": schemas, "mode": choice.mode, "parallel": choice.parallel}


class Thinks(ThinkParser):
    end_marker = "</think>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level_folder(tmp_path_factory.mktemp("forced")))


def prompt_of(tokenizer: Tokenizer, parser: Any = Structured, reasoning: Any = None, **request: Any) -> Prompt:
    renderer = ChatRenderer(tokenizer, parser() if parser else None, reasoning() if reasoning else None)
    return renderer.prepare_now(ChatRequest([HI], **{"tools": TOOLS, **request}))


def held(prompt: Prompt, grammar: GrammarParams | None = None, **more: Any) -> GrammarParams | None:
    return prompt.constrained(SamplingParams(grammar=grammar), **more).grammar


def structure(grammar: GrammarParams | None) -> Any:
    assert grammar is not None
    assert grammar.kind == "structural_tag"
    return json.loads(grammar.text)


NAMED = {"type": "function", "function": {"name": "g"}}


def test_required(tokenizer: Tokenizer) -> None:
    prompt = prompt_of(tokenizer, tool_choice="required")
    made = structure(grammar := held(prompt))
    assert (made["mode"], made["parallel"], [e["for"] for e in made["elements"]]) == ("required", True, ["f", "g", "h"])
    assert grammar is not None
    assert grammar.schemas == ("tools[0].function.parameters", "tools[1].function.parameters", "tools")
    assert structure(held(prompt_of(tokenizer, tool_choice="required", parallel_tool_calls=False)))["parallel"] is False
    assert isinstance(prompt.tool_parser, Structured)


def test_named_is_one_call(tokenizer: Tokenizer) -> None:
    made = structure(grammar := held(prompt_of(tokenizer, tool_choice=NAMED)))
    assert (made["mode"], made["parallel"], [e["for"] for e in made["elements"]]) == ("required", False, ["g"])
    assert grammar is not None
    assert grammar.schemas == ("tools[1].function.parameters",)


def test_allowed_tools(tokenizer: Tokenizer) -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    assert [e["for"] for e in structure(held(prompt_of(tokenizer, tool_choice=allowed)))["elements"]] == ["g"]
    allowed["allowed_tools"] = {"mode": "auto", "tools": [NAMED]}
    prompt = prompt_of(tokenizer, tool_choice=allowed)
    assert held(prompt) is None
    assert [t["function"]["name"] for t in prompt.tools] == ["g"]


def test_auto_and_none(tokenizer: Tokenizer) -> None:
    text = GrammarParams(kind="regex", text="a+", param="regex")
    assert held(prompt_of(tokenizer)) is None
    assert held(prompt_of(tokenizer, tool_choice="none")) is None
    assert held(prompt_of(tokenizer, tool_choice="none"), text) == text
    assert held(prompt_of(tokenizer, tools=()), text) == text
    assert held(prompt_of(tokenizer, parser=None), text) == text
    either = structure(grammar := held(prompt_of(tokenizer), text))
    assert either["elements"][0] == {"type": "regex", "pattern": "a+"}
    assert either["elements"][1]["mode"] == "required"
    assert grammar is not None
    assert grammar.param == "regex"


def test_strict_functions_hold_their_calls(tokenizer: Tokenizer) -> None:
    tools = [tool("f", {"type": "object", "title": "F"}, strict=True), TOOLS[1]]
    prompt = prompt_of(tokenizer, tools=tools)
    made = structure(held(prompt))
    assert (made["mode"], [e["json_schema"].get("title") for e in made["elements"]]) == ("auto", ["F", None])
    assert held(prompt, has_backend=False) is None
    assert held(prompt_of(tokenizer, parser=CallParser, tools=tools)) is None
    assert held(prompt_of(tokenizer, tool_choice="required"), has_backend=False) is not None


def test_without_a_structure_calls_are_plain_json(tokenizer: Tokenizer) -> None:
    for parser in (None, CallParser):
        prompt = prompt_of(tokenizer, parser=parser, tool_choice="required")
        assert structure(held(prompt)) == plain_structure(TOOLS, True)
        assert isinstance(prompt.tool_parser, JsonCalls)
        assert len(prompt.tools) == 3
        one = prompt_of(tokenizer, parser=parser, tool_choice=NAMED)
        assert structure(held(one)) == plain_structure(TOOLS[1:2], False)


def test_what_excludes_each_other(tokenizer: Tokenizer) -> None:
    text = GrammarParams(kind="regex", text="a+", param="regex")
    for prompt in (prompt_of(tokenizer, tool_choice="required"), prompt_of(tokenizer, tool_choice=NAMED)):
        with pytest.raises(RequestError, match="tool_choice forces"):
            held(prompt, text)
    with pytest.raises(RequestError, match="cannot be given together"):
        held(prompt_of(tokenizer, parser=CallParser), text)


WRONG = [
    ("required", (), "tool_choice"),
    (NAMED, (), "tool_choice.function.name"),
    ({"type": "function", "function": {"name": "x"}}, TOOLS, "tool_choice.function.name"),
    ({"type": "function"}, TOOLS, "tool_choice.function.name"),
    ({"type": "custom"}, TOOLS, "tool_choice"),
    ("any", TOOLS, "tool_choice"),
    (3, TOOLS, "tool_choice"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, TOOLS, "tool_choice.allowed_tools"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [NAMED]}}, TOOLS, "tool_choice.allowed_tools"),
    ({"type": "allowed_tools", "allowed_tools": {"tools": ["x"]}}, TOOLS, "tool_choice.allowed_tools.tools"),
]


@pytest.mark.parametrize(("choice", "tools", "param"), WRONG)
def test_wrong_choices_are_named(choice: Any, tools: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_choice(choice, tools)
    assert caught.value.param == param


@pytest.mark.parametrize("split", [True, False])
def test_after_reasoning(tokenizer: Tokenizer, tmp_path: Path, split: bool) -> None:
    thinks = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    opening = Tokenizer.load(byte_level_folder(tmp_path, chat_template=thinks))
    text = GrammarParams(kind="regex", text="a+", param="regex")
    asked: dict[str, Any] = {"reasoning": Thinks, "parse_reasoning": split, "tool_choice": "none"}
    made = held(prompt_of(opening, **asked), text)
    assert made is not None
    assert made.after == "</think>"
    assert held(prompt_of(tokenizer, **asked), text) == text  # the template opens none: thinking is off
    assert held(prompt_of(opening, **{**asked, "reasoning": ThinkParser}), text) == text
    forced = held(prompt_of(opening, **{**asked, "tool_choice": "required"}))
    assert forced is not None
    assert forced.after == "</think>"


# Plain JSON


def run(pieces: list[str]) -> tuple[str, list[list[str]]]:
    stream: ParserStream = JsonCalls().stream([])
    content, calls = "", []
    for delta in [*map(stream.feed, pieces), stream.finish()]:
        content += delta.content
        for call in delta.tool_calls:
            if call.name is not None:
                assert call.index == len(calls)
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
    return content, calls


LEAVES = st.none() | st.integers() | st.text(alphabet='a"\\{}[],ü\n', max_size=6)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(max_size=2), v), max_leaves=4)
ARGUMENTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.text(alphabet='af_"é', min_size=1, max_size=6), ARGUMENTS), min_size=1, max_size=3)


@given(CALLS, st.booleans(), st.booleans(), st.lists(st.integers(0, 300), max_size=8))
def test_plain_calls_any_chunking(made: list[Any], ascii_only: bool, spread: bool, cuts: list[int]) -> None:
    indent = 1 if spread else None
    texts = [json.dumps(arguments, ensure_ascii=ascii_only, indent=indent) for _, arguments in made]
    calls = [
        f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {text}}}'
        for (name, _), text in zip(made, texts, strict=True)
    ]
    text = f"[{', '.join(calls)}]" if len(calls) > 1 else calls[0]
    want = ("", [[name, text] for (name, _), text in zip(made, texts, strict=True)])
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert run([text]) == want
    assert run([text[a:b] for a, b in pairwise(edges)]) == want
    assert run(list(text)) == want


@given(st.text(alphabet='[]{}",: nameargutsf\\1', max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_other_text_comes_back(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert run([text[a:b] for a, b in pairwise(edges)]) == run([text]) == run(list(text))
    if '"name"' not in text:
        assert run([text])[0] == text


def test_cut_short() -> None:
    assert run(['[{"name": "f", "argu']) == ('[{"name": "f", "argu', [])
    assert run(['[{"name": "f", "arguments": {"a": 1']) == ("", [["f", '{"a": 1']])
    assert run(['[{"name": "f", "arguments": {}}, {"na']) == (', {"na', [["f", "{}"]])
    assert run(['[{"name": "f", "arguments": {}}']) == ("", [["f", "{}"]])
