"""Driving a parser: feed a text in pieces, check the protocol of its deltas, collect what came out.

Shared by the suites of tool parsers and reasoning parsers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from core.interfaces.parsers import ParsedDelta, ParserStream, ToolCallDelta

# Letters, digits, punctuation, white space and wide characters that open no marker of any format in use.
PLAIN = "abc xyz ÄßÉ ñ 東京 🎉👩‍🚀 \n\t .,;:!?- 0123456789"


@dataclass(frozen=True, slots=True)
class Parsed:
    """All that a parser gave out. calls: (name, text of the arguments) in order of their indices."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()


def parse(stream: ParserStream, pieces: Sequence[str]) -> Parsed:
    """Feed `pieces`, finish, and collect."""
    return collect([*(stream.feed(piece) for piece in pieces), stream.finish()])


def collect(deltas: Iterable[ParsedDelta]) -> Parsed:
    """Put the deltas of one text together. Fails the test where they break the protocol."""
    content, reasoning = "", ""
    calls: list[list[str]] = []
    for delta in deltas:
        assert isinstance(delta, ParsedDelta), f"feed and finish return a ParsedDelta, not {delta!r}"
        assert isinstance(delta.content, str), f"content is {delta.content!r}"
        assert isinstance(delta.reasoning, str), f"reasoning is {delta.reasoning!r}"
        content += delta.content
        reasoning += delta.reasoning
        for call in delta.tool_calls:
            _take_call(call, calls)
    return Parsed(content, reasoning, tuple((name, arguments) for name, arguments in calls))


def _take_call(call: ToolCallDelta, calls: list[list[str]]) -> None:
    assert isinstance(call, ToolCallDelta), f"tool_calls holds {call!r}"
    assert isinstance(call.arguments, str), f"arguments are text, not {call.arguments!r}"
    if call.name is not None:
        assert isinstance(call.name, str), f"the name is {call.name!r}"
        assert call.name, f"call {call.index} has an empty name"
        assert call.index == len(calls), f"a new call has index {call.index}; it is number {len(calls)}"
        calls.append([call.name, ""])
    assert 0 <= call.index < len(calls), f"arguments of call {call.index} come before its name"
    assert call.index == len(calls) - 1, f"arguments of call {call.index} come after the next call has begun"
    calls[call.index][1] += call.arguments


def cut(text: str, places: Sequence[int]) -> list[str]:
    """`text` in pieces, cut at `places` (any numbers; those past the end cut nothing off)."""
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def all_cuts(text: str, *, num_random: int = 60, seed: int = 0) -> Iterator[list[str]]:
    """Every cut in two, one character at a time, and random cuts into many pieces, empty ones among them."""
    yield list(text)
    yield ["", *[piece for character in text for piece in (character, "")]]
    for place in range(len(text) + 1):
        yield cut(text, [place])
    choose = random.Random(seed)
    for _ in range(num_random):
        yield cut(text, [choose.randint(0, len(text)) for _ in range(choose.randint(2, 12))])


def squeeze(text: str) -> str:
    """Without white space, which formats may own around their markers."""
    return "".join(text.split())


def is_subsequence(part: str, whole: str) -> bool:
    """Whether `part` is `whole` with characters left out."""
    characters = iter(whole)
    return all(character in characters for character in part)


def num_calls(stream: ParserStream, text: str) -> int:
    """How many functions are called, Python's own among them, to parse `text` a character at a time."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for character in text:
            stream.feed(character)
        stream.finish()
    finally:
        sys.setprofile(before)
    return count
