"""The law of parsers: any chunking gives the same result, and nothing is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.interfaces.parsers import ParsedDelta, ParserStream
from plugin_demo.reasoning_parser import DemoReasoningParser
from plugin_demo.tool_parser import DemoToolParser, parse_call

Result = tuple[str, str, list[tuple[int, str, str]]]


def run(stream: ParserStream, pieces: list[str]) -> Result:
    content = reasoning = ""
    calls: dict[int, list[str]] = {}
    deltas: list[ParsedDelta] = [stream.feed(piece) for piece in pieces]
    for delta in [*deltas, stream.finish()]:
        content += delta.content
        reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.name is not None:
                assert call.index not in calls
                calls[call.index] = [call.name, ""]
            calls[call.index][1] += call.arguments
    return content, reasoning, [(index, name, text) for index, (name, text) in sorted(calls.items())]


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


FRAGMENTS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"x": 1}}', '{"name": "f"', "}",
    '"', "<", "</", "<tool", "call>", "\n", " ", "\n\n", "text", "ü🎉", '{"name": "f", "arguments": "{\\"a\\": 1e3}"}',
    '{"name": 3}', "<tool_call>\n", "\n</tool_call>",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=10).map("".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)


@given(TEXTS, CUTS)
def test_tool_parser_any_chunking(text: str, cuts: list[int]) -> None:
    whole = run(DemoToolParser().stream([]), [text])
    assert run(DemoToolParser().stream([]), cut(text, cuts)) == whole
    assert run(DemoToolParser().stream([]), list(text)) == whole


@given(TEXTS, CUTS, st.booleans())
def test_reasoning_parser_any_chunking(text: str, cuts: list[int], opened: bool) -> None:
    whole = run(DemoReasoningParser().stream(opened), [text])
    assert run(DemoReasoningParser().stream(opened), cut(text, cuts)) == whole
    assert run(DemoReasoningParser().stream(opened), list(text)) == whole


def squeeze(text: str) -> str:
    return "".join(text.split())


@given(TEXTS)
def test_tool_parser_loses_nothing(text: str) -> None:
    content, _, calls = run(DemoToolParser().stream([]), [text])
    if not calls:
        assert content == text
    # Every call accounts for one pair of markers (the last may lack the closing one) and its own text.
    assert len(squeeze(content)) <= len(squeeze(text))
    for _, name, arguments in calls:
        assert name
        assert isinstance(json.loads(arguments), dict)


@given(TEXTS, st.booleans())
def test_reasoning_parser_loses_nothing(text: str, opened: bool) -> None:
    content, reasoning, _ = run(DemoReasoningParser().stream(opened), [text])
    starts = text.lstrip().startswith("<think>") and not opened
    rest = text.lstrip().removeprefix("<think>") if starts else text
    if starts or opened:
        before, closed, behind = rest.partition("</think>")
        assert reasoning == before.strip()
        assert content == (behind.lstrip() if closed else "")
    else:
        assert (content, reasoning) == (text, "")


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello.", "Hello.", []),
        ("Hello.\n", "Hello.\n", []),
        ('<tool_call>\n{"name": "f", "arguments": {"a": [1, 2.0]}}\n</tool_call>', "", [(0, "f", '{"a": [1, 2.0]}')]),
        ('I look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n', "I look.", [(0, "f", "{}")]),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {"b": "ü"}, "name": "g"}\n</tool_call>',
            "",
            [(0, "f", '{"a": 1}'), (1, "g", '{"b": "ü"}')],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": "</b>"}}', "", [(0, "f", '{"a": "</b>"}')]),
        ('<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', []),
        ("<tool_call>not JSON</tool_call> then text", "<tool_call>not JSON</tool_call> then text", []),
        ('<tool_call>{"name": "f", "x": 3}</tool_call>', '<tool_call>{"name": "f", "x": 3}</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n\nDone.', "\n\nDone.", [(0, "f", "{}")]),
        ("a < b <tool", "a < b <tool", []),
    ],
)  # fmt: skip
def test_tool_parser_examples(text: str, content: str, calls: list[tuple[int, str, str]]) -> None:
    assert run(DemoToolParser().stream([]), [text]) == (content, "", calls)


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (' {"name" : "f" , "arguments" : {"x":1.50,"x":2} } ', ("f", '{"x":1.50,"x":2}')),
        ('{"name": "f", "arguments": "{\\"a\\": 1e3}"}', ("f", '{"a": 1e3}')),
        ('{"name": "f"}', ("f", "{}")),
        ('{"name": "", "arguments": {}}', None),
        ('{"name": "f", "name": "g", "arguments": {}}', None),
        ('{"name": "f", "arguments": {}, "more": 1}', None),
        ('["f"]', None),
        ("{}", None),
        ('{"name": "f", "arguments": {}} x', None),
        ("[" * 100_000, None),
    ],
)
def test_parse_call(body: str, call: tuple[str, str] | None) -> None:
    assert parse_call(body) == call


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nfour\n</think>\n\n4", False, "four", "4"),
        ("four\n</think>\n\n4", True, "four", "4"),
        ("\n<think>a b</think>c", False, "a b", "c"),
        ("no reasoning <think>x</think>", False, "", "no reasoning <think>x</think>"),
        ("never closed \n", True, "never closed", ""),
        ("<thinking>", False, "", "<thinking>"),
    ],
)
def test_reasoning_parser_examples(text: str, opened: bool, reasoning: str, content: str) -> None:
    assert run(DemoReasoningParser().stream(opened), [text]) == (content, reasoning, [])
