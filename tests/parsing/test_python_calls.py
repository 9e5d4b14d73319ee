"""Calls as Python: literals against Python's own reading of them, and what is refused."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.parsing.python_calls import PythonCallStream, PythonFormat, python_value
from core.parsing.settings import DEFAULT_HOLD
from core.testing.contracts.tool_parser_streams import Parsed, all_cuts, cut, parse

PLAIN = PythonFormat()
MARKED = PythonFormat("<|python_start|>", "<|python_end|>")

_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=12)
)
VALUES = st.recursive(
    _LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=8
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "a.b", "get-it", "_x"]), st.dictionaries(st.sampled_from("abc"), VALUES)),
    min_size=1,
    max_size=3,
)


def run(text: str, form: PythonFormat = PLAIN, hold: int = DEFAULT_HOLD) -> Parsed:
    return parse(PythonCallStream(form, hold), [text])


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(VALUES)
def test_literals_mean_what_they_mean_in_python(value: Any) -> None:
    written = python_value(repr(value))
    assert written is not None
    assert json.loads(written) == value


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(VALUES)
def test_json_is_read_as_well(value: Any) -> None:
    """So that what a schema forces is read: true, null, \\/ and halves of characters."""
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).replace("/", "\\/")):
        assert json.loads(python_value(text) or "") == value


@pytest.mark.parametrize(
    "text",
    ["''", '""', "'''a\n'b''c'''", '"""x"y"""', r"'\x41é\U0001F389\101\0'", r"'a\qb'", "'a\\\nb'", "1_000", "-0", "0",
     "+1", "1.", ".5", "-.5e-3", "1E5", "[]", "[1,]", "{'a': {}, }", "(1, 2)", "()", "\t 'x' \n"],
)  # fmt: skip
def test_spellings(text: str) -> None:
    meant = ast.literal_eval(text.strip().replace("\\q", "\\\\q"))
    assert json.loads(python_value(text) or "") == (list(meant) if isinstance(meant, tuple) else meant)


@pytest.mark.parametrize(
    "text",
    ["", "x", "f()", "1 2", "'a' 'b'", "'a", "f'a'", "b'a'", "{1: 2}", "{1, 2}", "[1", "[,]", "[1 2]", "007", "1__0",
     "_1", "1_", "0x10", "1j", "--1", "1e", "nan", "lambda: 0", "'\\x4'", "'\\ud83d'", "'\\udc00'", "'\\U00110000'",
     "True1", "{'a'}", "{'a': }", "...", "٣", "[" * 41 + "]" * 41],
)  # fmt: skip
def test_what_is_no_literal(text: str) -> None:
    assert python_value(text) is None


def test_very_deep_and_very_long_values_do_no_harm() -> None:
    assert python_value("[" * 100_000) is None
    assert python_value("-" * 100_000) is None
    assert len(python_value("'" + "\\n" * 50_000 + "'") or "") == 100_002


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(CALLS, st.lists(st.integers(0, 300), max_size=8), st.sampled_from([0, 20, DEFAULT_HOLD]), st.booleans())
def test_calls_come_back(calls: list[tuple[str, dict[str, Any]]], places: list[int], hold: int, marked: bool) -> None:
    texts = (f"{name}({', '.join(f'{key}={value!r}' for key, value in made.items())})" for name, made in calls)
    text = f"[{', '.join(texts)}]"
    form = MARKED if marked else PLAIN
    if marked:
        text = f"{form.opening}{text}{form.closing}"
    result = parse(PythonCallStream(form, hold), cut(text, places))
    assert [(name, json.loads(made)) for name, made in result.calls] == calls
    assert result.content == ""


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        ("[f()]", "", 1),
        ("  [f()]\n", "", 1),
        ("hm\n  [f()]", "hm", 1),
        ("hm [f()]", "hm [f()]", 0),
        ("hm <|python_start|>[f()]<|python_end|> so", "hm so", 1),
        ("hm <|python_start|> [f()] so", "hm so", 1),
        ("<|python_start|>f()<|python_end|>", "<|python_start|>f()<|python_end|>", 0),
        ("[f()]<|python_end|>", "", 1),
        ("[f()][g()]", "[g()]", 1),
        ("[f()]\n[g()]", "", 2),
        ("[oops\n[g()]", "[oops", 1),
        ("[oops [g()]", "[oops [g()]", 0),
        ("[ f ( a = 1 , ) ]", "", 1),
        ("[f(a=1,, b=2)]", "[f(a=1,, b=2)]", 0),
        ("x = [\n[1]]", "x = [\n[1]]", 0),
    ],
)
def test_where_lists_stand(text: str, content: str, num_calls: int) -> None:
    for pieces in all_cuts(text, num_random=5):
        result = parse(PythonCallStream(MARKED, DEFAULT_HOLD), pieces)
        assert (result.content, len(result.calls)) == (content, num_calls)


def test_a_long_string_comes_as_it_is_written() -> None:
    stream = PythonCallStream(PLAIN, 20)
    assert not stream.feed("[f(a=1, b='0123456").tool_calls
    (first,) = stream.feed("789").tool_calls
    assert (first.name, first.arguments) == ("f", '{"a": 1, "b": "0123456789')
    assert stream.feed("x\\").tool_calls[0].arguments == "x"
    (last,) = stream.feed("n')]").tool_calls
    assert last.arguments == '\\n"}'
    assert run("[f(a='0123456789', b=x)] and\n[g()]", hold=10) == Parsed(
        content="x)] and\n[g()]", calls=(("f", '{"a": "0123456789", "b": '),)
    )
