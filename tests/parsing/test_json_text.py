"""The scanner takes what Python's json takes, and says so at the right character."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.parsing.json_text import JsonScanner

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)
PIECES = st.sampled_from(
    [*'{}[],:"\\ \n\t0123456789.-+eEtfnu/abDx', "true", "false", "null", '"a"', "\\u12aF", "\x01", "é"]
)


def scan(text: str, cuts: list[int] | None = None) -> tuple[int, bool, bool, bool]:
    """(characters taken, complete, failed, may_end), fed in pieces."""
    scanner = JsonScanner()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts or []), len(text)]
    taken = 0
    for start, end in pairwise(edges):
        if scanner.complete or scanner.failed:
            break
        taken += scanner.feed(text[:end], start) - start
    return taken, scanner.complete, scanner.failed, scanner.may_end


def reads(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda name: json.loads("x"))
    except ValueError:
        return False
    return True


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(0, 99), max_size=5))
def test_json_is_taken_to_its_last_character(value: Any, ascii_only: bool, indent: int | None, cuts: list[int]) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    taken, complete, failed, may_end = scan(text, cuts)
    assert (taken, failed, may_end) == (len(text), False, True)
    taken, complete, failed, may_end = scan(text + " rest", cuts)
    assert (taken, complete, failed, may_end) == (len(text), True, False, True)


@given(st.lists(PIECES, max_size=12).map("".join), st.lists(st.integers(0, 30), max_size=5))
def test_any_text_is_judged_as_json_judges_it(text: str, cuts: list[int]) -> None:
    taken, complete, failed, may_end = scan(text)
    assert scan(text, cuts) == scan(text, list(range(len(text)))) == (taken, complete, failed, may_end)
    assert reads(text[:taken]) == may_end
    if not failed and not complete:
        assert taken == len(text)
    if failed:  # no text that begins so is JSON, and the one before it may be
        assert not reads(text)
        assert not any(reads(text[: taken + 1] + rest) for rest in ("", '"', "}", "]", "0", '"}', "1]", "rue", '":1}'))


@given(VALUES, st.integers(0, 200))
def test_a_beginning_of_json_does_not_fail(value: Any, end: int) -> None:
    text = json.dumps(value)[:end]
    assert not scan(text)[2]


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("01", 1), ("-", 1), ("-x", 1), ("1.}", 2), ("1e+}", 3), ("trux", 3), ('"\\q', 2), ('"\\u12G', 5), ('"\n', 1),
        ("{1", 1), ('{"a" 1', 5), ('{"a":1,}', 7), ("[1,]", 3), ("[1 2", 3), ("[}", 1), ("{]", 1), ("}", 0), ("NaN", 0),
        ("'a'", 0), ("[1}", 2), ("\x0b1", 0),
    ],
)  # fmt: skip
def test_where_it_fails(text: str, taken: int) -> None:
    got = scan(text)
    assert got[0] == taken
    assert got[2] or text == "01" or text == "-"


def test_depth_is_limited_without_recursion() -> None:
    scanner = JsonScanner(max_depth=3)
    assert scanner.feed("[[[[") == 3
    assert scanner.failed
    deep = JsonScanner(max_depth=100_000)
    text = "[" * 100_000 + "]" * 100_000
    assert deep.feed(text) == len(text)
    assert deep.complete
