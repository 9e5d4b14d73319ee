"""The machine of reasoning formats, beyond the suite of reasoning parsers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat, ReasoningStream
from core.testing.contracts.tool_parser_streams import Parsed, cut, parse

FORM = ReasoningFormat(open="<think>", close="</think>", also_close=("<tool_call>",))
PIECES = ["<think>", "</think>", "<tool_call>", "<", "think>", " ", "\n", "a", "b c", "</thin"]


def meaning(text: str, opened: bool) -> Parsed:
    """The same by plain string operations on the whole text."""
    space = " \t\r\n"
    bare = text.lstrip(space)
    if bare.startswith("<think>"):
        bare = bare.removeprefix("<think>")
    elif not opened:
        return Parsed(content=text)
    places = {marker: bare.find(marker) for marker in ("</think>", "<tool_call>") if marker in bare}
    if not places:
        return Parsed(reasoning=bare.strip(space))
    first = min(places, key=lambda marker: places[marker])
    behind = bare[places[first] :]
    content = behind if first == "<tool_call>" else behind.removeprefix(first).lstrip(space)
    return Parsed(content, bare[: places[first]].strip(space))


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join), st.lists(st.integers(0, 60)), st.booleans())
def test_it_is_what_string_operations_give(text: str, places: list[int], opened: bool) -> None:
    assert parse(ReasoningStream(FORM, opened), cut(text, places)) == meaning(text, opened)


def test_reasoning_comes_as_it_is_written() -> None:
    stream = ReasoningStream(FORM, opened=False)
    pieces = ("<think>", "\nHm", ", ", "so", " </th", "ing", "</think>")
    assert [stream.feed(piece).reasoning for piece in pieces] == ["", "Hm", ",", " so", "", " </thing", ""]
    assert stream.feed("\n\n4").content == "4"


def test_a_parser_is_its_format() -> None:
    class Parser(MarkedReasoningParser):
        form = FORM

    class Other(Parser):
        always_reasons = True

    assert Parser.end_marker == Other.end_marker == "</think>"
    assert parse(Other().stream(True), ["a</think>b"]) == Parsed("b", "a")
    assert MarkedReasoningParser.end_marker is None


@pytest.mark.parametrize(
    ("opened", "text", "content"),
    [
        (True, "a</think>b", "<think>a</think>b"),
        (True, " <think>a", " <think>a"),
        (False, "a", "a"),
        (True, "", "<think>"),
    ],
)
def test_a_prefix_keeps_all_of_the_text_in_the_content(opened: bool, text: str, content: str) -> None:
    form = ReasoningFormat(open="<think>", close="</think>", prefix="<think>")
    assert parse(ReasoningStream(form, opened), [text]) == parse(ReasoningStream(form, opened), list(text))
    assert parse(ReasoningStream(form, opened), [text]) == Parsed(content=content)
