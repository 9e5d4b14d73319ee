"""What models' chat templates write is read back: calls, reasoning, and where a prompt leaves off.

The templates are tests/parsing/templates; see the README there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.frontend.chat import ChatRenderer, ChatRequest
from core.frontend.template import ChatTemplate
from core.frontend.tokenizer import Tokenizer
from core.interfaces.parsers import ReasoningParser, ToolParser
from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.testing.contracts.tool_parser_streams import Parsed, cut, parse
from tests.frontend.made_tokenizers import byte_level_folder

FOLDER = Path(__file__).parent / "templates"
CATALOG = Catalog.scan()
USER = {"role": "user", "content": "What is the weather?"}
PROPERTIES = {
    "city": {"type": "string"},
    "unit": {"enum": ["celsius", "kelvin"]},
    "note": {"type": ["string", "null"]},
    "days": {"type": "integer"},
    "share": {"type": "number"},
    "now": {"type": "boolean"},
    "places": {"type": "array", "items": {"type": "string"}},
    "more": {"type": "object"},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in ("get_weather", "set_alarm")
]


def parser(kind: str, name: str) -> Any:
    record = CATALOG.record(kind, name)
    return CATALOG.load(kind, name)(plugin_context(record, {}))


def template(name: str) -> ChatTemplate:
    return ChatTemplate({"default": (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")}, {})


def turn(name: str, message: Mapping[str, Any], end: str, **variables: Any) -> tuple[str, str]:
    """(what the prompt wrote of the assistant's turn, what the model writes), as the template renders them."""
    made = template(name)
    before = made.render([USER], variables=variables)
    prompt = made.render([USER], add_generation_prompt=True, variables=variables)
    whole = made.render([USER, {"role": "assistant", **message}], variables=variables)
    assert prompt.startswith(before)
    assert whole.endswith(end)
    assert whole.startswith(prompt)
    return prompt.removeprefix(before), whole.removeprefix(prompt).removesuffix(end)


def read(text: str, reasoning: ReasoningParser | None, tools: ToolParser, opens: bool, places: list[int]) -> Parsed:
    """As the output stage does: reasoning first, calls in what it leaves."""
    first = parse(reasoning.stream(opens), cut(text, places)) if reasoning is not None else Parsed(content=text)
    second = parse(tools.stream(TOOLS), cut(first.content, places))
    return Parsed(second.content, first.reasoning, second.calls)


# template, tool parser, reasoning parser, what ends a turn, variables of the template
FAMILIES = [
    ("qwen3_coder", "qwen3_coder", None, "<|im_end|>\n", {}),
    ("step3", "step3", "step3", "<|EOT|>", {}),
    ("step3p5", "step3p5", "step3p5", "<|im_end|>\n", {}),
    ("mimo", "mimo", "mimo", "<|im_end|>\n", {"enable_thinking": True}),
    ("glm45", "glm45", "glm45", "", {}),
    ("glm47", "glm47", "glm45", "", {}),
    ("minimax_m2", "minimax-m2", "minimax", "[e~[\n", {}),
    ("deepseek_v32", "deepseekv32", "deepseek-v3", "<｜end▁of▁sentence｜>", {"thinking": True}),
    ("llama4", "llama4_pythonic", None, "<|eot|>", {}),
]
CLOSERS = ("</parameter>", "</arg_value>", "</steptml:parameter>", "</｜DSML｜parameter>")
TEXTS = st.text(
    st.one_of(
        st.sampled_from(list("abc <>/\"'\\\n{}[]|_=")), st.characters(codec="utf-8", categories=("L", "N", "So"))
    ),
    max_size=16,
).filter(lambda text: not any(closer in text for closer in CLOSERS))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, TEXTS)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": TEXTS,
        "unit": st.sampled_from(["celsius", "kelvin"]),
        "note": st.none() | TEXTS.filter(lambda text: text not in ("null", "None")),
        "days": st.integers(),
        "share": FLOATS,
        "now": st.booleans(),
        "places": st.lists(TEXTS, max_size=3),
        "more": st.dictionaries(TEXTS, LEAVES, max_size=3),
    },
)
CALLS = st.lists(st.tuples(st.sampled_from(["get_weather", "set_alarm"]), ARGUMENTS), min_size=1, max_size=3)
PLACES = st.lists(st.integers(0, 500), max_size=6)


@pytest.mark.parametrize(
    ("name", "tool_parser", "reasoning_parser", "end", "variables"), FAMILIES, ids=lambda v: str(v)
)
def test_a_rendered_turn_is_read_back(
    name: str, tool_parser: str, reasoning_parser: str | None, end: str, variables: dict[str, Any]
) -> None:
    tools = parser("tool_parsers", tool_parser)
    reasoning = parser("reasoning_parsers", reasoning_parser) if reasoning_parser else None

    @settings(max_examples=25, deadline=None, database=None, derandomize=True)
    @given(CALLS, st.sampled_from(["", "I look it up."]), st.sampled_from(["", "Hm.\n\nLet me see."]), PLACES)
    def check(calls: list[tuple[str, dict[str, Any]]], content: str, thought: str, places: list[int]) -> None:
        message: dict[str, Any] = {
            "content": content,
            "tool_calls": [{"function": {"name": called, "arguments": made}} for called, made in calls],
        }
        if reasoning is not None:
            message["reasoning_content"] = thought or "Well."
        opened, text = turn(name, message, end, **variables)
        result = read(text, reasoning, tools, "<think>" in opened, places)
        assert [(called, json.loads(made)) for called, made in result.calls] == calls, text
        assert result.content == content, text
        assert result.reasoning == message.get("reasoning_content", ""), text

    check()


@pytest.mark.parametrize(
    ("name", "parser_name", "variables", "opens"),
    [
        ("qwen3", "qwen3", {}, False),
        ("qwen3", "qwen3", {"enable_thinking": True}, False),  # the model opens it itself
        ("qwen3", "qwen3", {"enable_thinking": False}, False),
        ("qwen3_thinking", "qwen3", {}, True),
        ("qwen3_thinking", "qwen3-thinking", {}, True),
        ("qwen3", "qwen3-thinking", {}, True),
        ("qwen3", "qwen3-thinking", {"enable_thinking": False}, False),
        ("deepseek_r1", "deepseek-r1", {"open_thinking": True}, True),
        ("deepseek_r1", "deepseek-r1", {}, True),
        ("deepseek_r1", "deepseek-v3", {}, False),
        ("deepseek_v31", "deepseek-v3", {"thinking": True}, True),
        ("deepseek_v31", "deepseek-v3", {"thinking": False}, False),
        ("deepseek_v31", "deepseek-v3", {}, False),
        ("deepseek_v31", "deepseek-r1", {}, False),
        ("glm45", "glm45", {}, False),  # the model opens it itself
        ("glm45", "glm45", {"enable_thinking": False}, False),
        ("glm47", "glm45", {}, True),
        ("glm47", "glm45", {"enable_thinking": False}, False),
        ("mimo", "mimo", {"enable_thinking": True}, False),
        ("mimo", "mimo", {}, False),
        ("minimax_m2", "minimax", {}, True),
        ("minimax_m2", "minimax-append-think", {}, True),
        ("step3", "step3", {}, True),
        ("step3p5", "step3p5", {}, True),
        ("nemotron_3", "nemotron_3", {}, True),
        ("nemotron_3", "nano-v3", {"enable_thinking": False}, False),
        ("magistral", "mistral", {}, False),
        ("kimi_vl", "kimi", {}, False),
        ("kimi_vl", "kimi", {"open_thinking": True}, True),
    ],
)
def test_where_a_prompt_leaves_off(
    tmp_path: Path, name: str, parser_name: str, variables: dict[str, Any], opens: bool
) -> None:
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = Tokenizer.load(byte_level_folder(tmp_path, chat_template=source))
    renderer = ChatRenderer(tokenizer, reasoning_parser=parser("reasoning_parsers", parser_name))
    assert renderer.prepare_now(ChatRequest([USER], template_variables=variables)).opens_reasoning is opens


@pytest.mark.parametrize(
    ("name", "parser_name", "end"),
    [
        ("qwen3", "qwen3", "<|im_end|>\n"),
        ("qwen3_thinking", "qwen3-thinking", "<|im_end|>\n"),
        ("deepseek_r1", "deepseek-r1", "<｜end▁of▁sentence｜>"),
        ("nemotron_3", "nemotron_3", "<|im_end|>\n"),
        ("magistral", "mistral", "</s>"),
        ("kimi_vl", "kimi", "<|im_end|>"),
    ],
)
def test_reasoning_that_was_rendered_is_read_back(name: str, parser_name: str, end: str) -> None:
    reasoning = parser("reasoning_parsers", parser_name)
    opened, text = turn(name, {"content": "It is 4.", "reasoning_content": "2 + 2\nis 4"}, end)
    opens = reasoning.always_reasons or "<think>" in opened
    assert parse(reasoning.stream(opens), list(text)) == Parsed("It is 4.", "2 + 2\nis 4")
    assert parse(reasoning.stream(opens), [text]) == Parsed("It is 4.", "2 + 2\nis 4")
