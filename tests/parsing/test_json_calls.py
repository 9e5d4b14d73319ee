"""The stream machine of JSON-bodied calls: what is held back, what is given out, and what breaks when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.parsing.call_stream import CallStream
from core.parsing.json_calls import Arguments, CallObject, JsonCalls, Layout, Literal, Name, Word
from core.parsing.settings import CallSettings, hold_of
from core.parsing.structures import NAME, Writing
from core.testing.contracts.tool_parser_streams import Parsed, all_cuts, cut, num_calls, parse

WRITING = Writing(begin=f"<{NAME}>")
OBJECT = JsonCalls((Layout(opens=("<c>",), call=(CallObject(), Literal(("</c>",)))),), WRITING)
HASH, END = Literal(("#",)), Literal((";",))
NAMED = JsonCalls(
    (
        Layout(opens=("<s>",), call=(HASH, Name(), Arguments(), END), separator="", closes=("</s>",)),
        Layout(opens=("<s>",), call=(Word(), Literal(("=",)), Name(prefix="x.", index=True), Arguments())),
        Layout(at_start=True, call=(Literal(("!",)), Name(), Arguments()), separator="&"),
    ),
    WRITING,
)  # fmt: skip


def read(calls: JsonCalls, text: str, hold: int = 256) -> Parsed:
    whole = parse(CallStream(calls, hold), [text])
    for pieces in all_cuts(text, num_random=10):
        assert parse(CallStream(calls, hold), pieces) == whole, pieces
    return whole


def test_a_call_that_breaks_while_held_is_text_and_one_that_breaks_later_keeps_what_was_given() -> None:
    text = '<c>{"name": "f", "arguments": {"a": 12, "b": tru}}</c>'
    assert read(OBJECT, text, hold=100) == Parsed(text)
    assert read(OBJECT, text, hold=5) == Parsed("}}</c>", "", (("f", '{"a": 12, "b": tru'),))
    given_out = len('{"a": 12, "b": tru')
    assert read(OBJECT, text, hold=given_out) == Parsed(text)
    assert read(OBJECT, text, hold=given_out - 1).calls


@pytest.mark.parametrize("hold", [0, 3, 100])
def test_what_follows_whole_arguments_and_is_wrong_is_not_lost(hold: int) -> None:
    given_out = (("f", '{"a": 1}'),) if hold < 8 else ()
    for tail in (', "other": 2}</c>', "} more", "}</d>", ', "name": "g"}</c>', ', "arguments": {}}</c>'):
        text = f'<c>{{"name": "f", "arguments": {{"a": 1}}{tail}'
        result = read(OBJECT, text, hold)
        if given_out:
            assert result.calls == given_out
            assert result.content.replace(" ", "") in tail.replace(" ", ""), tail
            assert text.endswith(result.content)
        else:
            assert result == Parsed(text)


def test_arguments_before_the_name_wait_for_it() -> None:
    text = '<c>{"arguments": {"a": [1, 2]}, "id": "7", "name": "f"}</c>'
    assert read(OBJECT, text, hold=0) == Parsed("", "", (("f", '{"a": [1, 2]}'),))
    broken = text.replace('"id"', '"no"')
    assert read(OBJECT, broken, hold=0) == Parsed(broken)
    late = text.replace('"f"}', '"f", }')
    assert read(OBJECT, late, hold=0) == Parsed(", }</c>", "", (("f", '{"a": [1, 2]}'),))


def test_inside_text_that_was_no_call_calls_are_found() -> None:
    call = '<c>{"name": "f"}</c>'
    assert read(OBJECT, f'<c>{{"id": "{call}') == Parsed('<c>{"id": "', "", (("f", "{}"),))
    assert read(OBJECT, f"<c><c>{call}<c>") == Parsed("<c><c><c>", "", (("f", "{}"),))


def test_ways_with_one_opener_are_tried_in_order() -> None:
    assert read(NAMED, "<s>#f{};# g {} ;</s>.") == Parsed(".", "", (("f", "{}"), ("g", "{}")))
    assert read(NAMED, "<s>id=x.h:12{}<s>#f{};") == Parsed("", "", (("h", "{}"), ("f", "{}")))
    assert read(NAMED, "<s>id=#f{};") == Parsed("<s>id=#f{};")
    assert read(NAMED, "<s>#f{}.") == Parsed("<s>#f{}.")
    assert read(NAMED, "<s>#f{};#f{}.</s>") == Parsed("#f{}.</s>", "", (("f", "{}"),))


def test_the_beginning_of_a_text_may_be_an_opener() -> None:
    assert read(NAMED, " !f{}& !g{}") == Parsed("", "", (("f", "{}"), ("g", "{}")))
    assert read(NAMED, "so !f{}") == Parsed("so !f{}")
    assert read(NAMED, "!<s>#f{};") == Parsed("!", "", (("f", "{}"),))
    assert read(NAMED, "!f{} & so") == Parsed(" & so", "", (("f", "{}"),))


def test_white_space_beside_calls_belongs_to_the_format() -> None:
    call = '<c>{"name": "f"}</c>'
    assert read(OBJECT, f"a \n{call}\n\n{call} b \n").content == "a b \n"
    assert read(OBJECT, f"{call} \n").content == ""
    assert read(OBJECT, " a <c> ").content == " a <c> "


@given(st.text("<c>{}/s#;=&! \n:\"'name\\", max_size=30), st.integers(0, 4), st.lists(st.integers(0, 30), max_size=6))
def test_any_text_in_any_pieces(text: str, hold: int, places: list[int]) -> None:
    for calls in (OBJECT, NAMED):
        whole = parse(CallStream(calls, hold), [text])
        assert parse(CallStream(calls, hold), cut(text, places)) == whole
        assert parse(CallStream(calls, hold), list(text)) == whole
        if not whole.calls:
            assert whole.content == text


def test_openers_inside_of_openers_do_not_multiply_the_work() -> None:
    """Each "[" opens a call whose arguments hold all that follows, up to the greatest depth."""
    calls = JsonCalls((Layout(opens=("[",), call=(Arguments(), Literal((";",)))),), WRITING)
    text = '[{"a":' * 1500
    assert parse(CallStream(calls, 10**9), [text]) == Parsed(text)
    assert num_calls(CallStream(calls, 10**9), text) < 150 * len(text)


def test_openers_that_hide_in_others_are_refused() -> None:
    for openers in (("a", "ab"), ("",), ("b", "abc")):
        with pytest.raises(ValueError, match="opener"):
            JsonCalls((Layout(opens=openers, call=(Arguments(),)),), WRITING)


def test_the_setting() -> None:
    assert hold_of(CallSettings(hold=3)) == 3
    assert hold_of({}) == 256
    with pytest.raises(ValueError, match="hold"):
        CallSettings(hold=-1)
    with pytest.raises(ValueError, match="holt"):
        CallSettings(holt=1)  # type: ignore[call-arg]
