"""Expressions are found where Python's own engine finds them in the shortest text that has one, however it is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.interfaces.errors import RequestError
from core.parsing.scanner import Scanner
from core.parsing.stop_regex import MAX_MATCH, RegexScanner

ATOMS = st.sampled_from(
    ["a", "b", "c", "1", "_", " ", r"\n", ".", "[ab]", "[^a]", r"\w", r"\d", r"\s", r"\W", r"[^\w\n]", "[a-c1]", r"\."]
)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeat = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,3}?", "{2,}"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda both: f"({both[0]}|{both[1]})"),
        st.tuples(inner, repeat).map(lambda both: f"(?:{both[0]}){both[1]}"),
        inner.map(lambda one: f"(?i:{one})"),
        inner.map("({})".format),
        inner.map(lambda one: f"(?s:{one})"),
        inner.map("^{}".format),
    )


EXPRESSIONS = st.recursive(ATOMS, _grown, max_leaves=8)
TEXTS = st.text("abcAB1_ \n.", max_size=20)


def expected(expressions: list[str], text: str) -> tuple[int, int] | None:
    for end in range(len(text) + 1):
        found = [match for source in expressions if (match := re.search(source, text[:end]))]
        if found:
            return min(match.start() for match in found), end
    return None


@settings(max_examples=600, deadline=None)
@given(
    expressions=st.lists(EXPRESSIONS, min_size=1, max_size=3),
    text=TEXTS,
    lines=st.booleans(),
    cuts=st.lists(st.integers(0, 20), max_size=6),
)
def test_found_where_python_finds_it(expressions: list[str], text: str, lines: bool, cuts: list[int]) -> None:
    expressions = [f"(?m){source}" if lines else source for source in expressions]
    try:
        scanner = RegexScanner(expressions)
    except RequestError as error:
        assume("too large" not in error.message)
        assert any(re.search(source, "") for source in expressions)
        return
    shown, read = "", 0
    places = sorted(min(cut, len(text)) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        safe, found, rest = scanner.feed(text[start:end])
        shown, read = shown + safe, read + end - start
        if found is not None:
            assert (len(shown), read - len(rest)) == expected(expressions, text)
            assert shown + found + rest == text[:read]
            assert scanner.name_of(found) in expressions
            return
        assert shown + scanner.held == text[:read]
    assert expected(expressions, text) is None
    assert shown + scanner.flush() == text


@given(text=st.text("abc", max_size=30), patterns=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1))
def test_texts_are_found_as_the_other_scanner_finds_them(text: str, patterns: list[str]) -> None:
    one, other = Scanner(patterns), RegexScanner(["never"], patterns)
    assert one.feed(text) == other.feed(text)
    assert one.flush() == other.flush()


@pytest.mark.parametrize(
    ("source", "text", "shown", "found"),
    [
        (r"\bEND\b", "BEND THE END.", "BEND THE ", "END"),
        (r"a\Bb", "xab", "x", "ab"),
        (r"END$", "the END", "the ", "END"),
        (r"\AEND", "THE END", "THE END", None),
        (r"(?m)^## ", "a ## b\n## c", "a ## b\n", "## "),
        (r"(?m);$\nx", "a;\nxb", "a", ";\nx"),
        (r"\b", "ab", "", ""),
        (r"(?a)\w\d", "é٣ a1", "é٣ ", "a1"),
        (r"(?i)[^a]É", "aéXé", "aé", "Xé"),
    ],
)
def test_anchors_and_flags(source: str, text: str, shown: str, found: str | None) -> None:
    for pieces in ([text], list(text)):
        scanner, out, got = RegexScanner([source]), "", None
        for piece in pieces:
            safe, got, _ = scanner.feed(piece)
            out += safe
            if got is not None:
                break
        assert (out + ("" if got is not None else scanner.flush()), got) == (shown, found)


def test_nothing_that_may_begin_a_match_goes_out() -> None:
    scanner = RegexScanner([r"\n+User:"])
    assert scanner.feed("Hello\n\nUs") == ("Hello", None, "")
    assert scanner.feed("ually") == ("\n\nUsually", None, "")
    assert scanner.feed("\nUser:x") == ("", "\nUser:", "x")


def test_what_is_not_armed_is_text() -> None:
    scanner = RegexScanner([r"a\b", "bc"])
    assert scanner.feed("a", armed=False)[1] is None
    assert scanner.feed(" bc", armed=False)[1] is None
    assert scanner.feed("bc ")[1] == "bc"


def test_long_matches_are_held_back_up_to_a_limit() -> None:
    scanner = RegexScanner([r"\(.*\)"])
    size = MAX_MATCH + 100
    shown, found, _ = scanner.feed("(" + "x" * size)
    assert found is None
    assert len(shown) == 101
    shown, found, rest = scanner.feed(")!")
    assert (len(shown), found is not None and len(found), rest) == (1, MAX_MATCH, "!")


@pytest.mark.parametrize("source", ["(a+)+$x", "(a|a)*b", "(.*)*x", "(?:a?){20}a{20}b", "(x+x+)+y"])
def test_no_expression_explodes(source: str) -> None:
    scanner = RegexScanner([source])
    scanner.feed("a" * 5_000)  # a backtracking engine would not come back
    assert len(scanner.held) <= MAX_MATCH


@pytest.mark.parametrize(
    ("expressions", "param", "told"),
    [
        (["a", "("], "stop_regex[1]", "no regular expression"),
        (["a*"], "stop_regex[0]", "every text"),
        (["x|"], "stop_regex[0]", "every text"),
        ([r"(a)\1"], "stop_regex[0]", "groupref"),
        (["(?=a)b"], "stop_regex[0]", "assert"),
        (["(?<!a)b"], "stop_regex[0]", "assert not"),
        (["(?>a)b"], "stop_regex[0]", "atomic"),
        (["a++b"], "stop_regex[0]", "possessive"),
        (["(?:.{0,300}){0,300}x"], "stop_regex[0]", "too large"),
        (["a{300}", "b{300}"], "stop_regex[1]", "too large"),
        (["a{99999999999999999999}"], "stop_regex[0]", "no regular"),
        (["(" * 200 + "a" + ")" * 200], None, ""),
    ],
)
def test_what_cannot_be_used_is_refused(expressions: list[str], param: str | None, told: str) -> None:
    if param is None:
        assert RegexScanner(expressions).feed("xa") == ("x", "a", "")
        return
    with pytest.raises(RequestError, match=told) as caught:
        RegexScanner(expressions)
    assert caught.value.param == param
