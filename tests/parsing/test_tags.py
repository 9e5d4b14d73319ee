"""The machine of tag formats beyond what the suite of tool parsers asks of every parser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.interfaces.parsers import Tool
from core.parsing.reader import Machine, Markers, Reader, Reading
from core.parsing.settings import DEFAULT_HOLD
from core.parsing.tags import ParameterTags, TagFormat, TagStream
from core.testing.contracts.tool_parser_streams import Parsed, all_cuts, cut, parse

FORM = TagFormat(
    section=("<calls>", "</calls>"),
    open=('<invoke name="',),
    name_close='">',
    parameter=ParameterTags(
        open='<parameter name="',
        key_closes=(('" string="true">', "string"), ('" string="false">', "json"), ('">', "schema")),
        close="</parameter>",
    ),
    close=("</invoke>",),
    json_body=True,
)
LINES = TagFormat(
    section=("<calls>", "</calls>"),
    bare=True,
    open=("<function=",),
    name_close=">",
    parameter=ParameterTags(open="<parameter=", key_closes=((">", "schema"),), close="</parameter>", trim=True),
    close=("</function>",),
)
UNCLOSED = replace(LINES, parameter=replace(LINES.parameter, unclosed=True))
PROPERTIES = {
    "text": {"type": "string"},
    "perhaps": {"type": ["string", "null"]},
    "number": {"type": "integer"},
    "tree": {"type": "object"},
}
TOOLS: list[Tool] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}}},
    {"type": "function", "function": {"name": "g"}},
]


def run(form: TagFormat, pieces: Sequence[str], hold: int = DEFAULT_HOLD) -> Parsed:
    return parse(TagStream(form, TOOLS, hold), pieces)


def call(*parameters: str, name: str = "f") -> str:
    return f'<calls><invoke name="{name}">{"".join(parameters)}</invoke></calls>'


@pytest.mark.parametrize(
    ("parameter", "meant"),
    [
        ('<parameter name="number" string="true">3</parameter>', {"number": "3"}),
        ('<parameter name="unknown" string="false">3</parameter>', {"unknown": 3}),
        ('<parameter name="unknown" string="false">{"a": 1}</parameter>', {"unknown": {"a": 1}}),
        ('<parameter name="text" string="false">3</parameter>', {"text": "3"}),
        ('<parameter name="text" string="false">"3"</parameter>', {"text": "3"}),
        ('<parameter name="perhaps" string="false">null</parameter>', {"perhaps": None}),
        ('<parameter name="number" string="false">True</parameter>', {"number": "True"}),
        ('<parameter name="text"> 3 </parameter>', {"text": " 3 "}),
        ('<parameter name="number"> 3 </parameter>', {"number": 3}),
        ('<parameter name="perhaps">null</parameter>', {"perhaps": None}),
        ('<parameter name="perhaps">nullify</parameter>', {"perhaps": "nullify"}),
        ('<parameter name="perhaps"></parameter>', {"perhaps": ""}),
        ('<parameter name="perhaps">nul</parameter>', {"perhaps": "nul"}),
        ('<parameter name="tree">{"a": "</parameter> </invoke>"}</parameter>', {"tree": '{"a": "'}),
        ('<parameter name="tree">{"a": "\\"</parameter> b"}</parameter>', {"tree": {"a": '"</parameter> b'}}),
        ('<parameter name="tree">{"a": "}</parameter>', {"tree": '{"a": "}'}),
        ("{}", {}),
        (' {"a": [1.50]} ', {"a": [1.5]}),
    ],
)
def test_values(parameter: str, meant: dict[str, Any]) -> None:
    text = call(parameter)
    assert json.loads(run(FORM, [text]).calls[0][1]) == meant
    for pieces in all_cuts(text, num_random=5):
        assert run(FORM, pieces) == run(FORM, [text])


TEXT = "<calls>\n<function=f>\n<parameter=text>\na b"
NUMBER = "<parameter=number>\n3"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (f"{TEXT}\n{NUMBER}\n</parameter>\n</function>\n</calls>", {"text": "a b", "number": 3}),
        (f"{TEXT}\n{NUMBER}\n</function>\n</calls>", {"text": "a b", "number": 3}),
        (f"{TEXT}\n</function>\n</calls>", {"text": "a b"}),
        (f"{TEXT}\n</function></calls>", {"text": "a b"}),
        (f"{TEXT}\n</function>", {"text": "a b"}),
        (f"<calls><function=f><parameter=tree>\n{{}}\n{NUMBER}\n</function></calls>", {"tree": {}, "number": 3}),
        # What stands in a line, is no parameter of the tool, was there already, or goes on: part of the value.
        (f"{TEXT} {NUMBER}\n</parameter></function></calls>", {"text": f"a b {NUMBER}"}),
        (f"{TEXT}\n<parameter=x>\n</parameter></function></calls>", {"text": "a b\n<parameter=x>"}),
        (f"{TEXT}\n<parameter=text>\n</parameter></function></calls>", {"text": "a b\n<parameter=text>"}),
        (f"{TEXT}\n</function> is\n</parameter></function></calls>", {"text": "a b\n</function> is"}),
    ],
)
def test_values_that_are_not_closed(text: str, meant: dict[str, Any]) -> None:
    whole = run(UNCLOSED, [text])
    assert [json.loads(arguments) for _, arguments in whole.calls] == [meant]
    assert whole.content == ""
    for pieces in all_cuts(text, num_random=5):
        assert run(UNCLOSED, pieces) == whole
        assert run(UNCLOSED, pieces, 0) == run(UNCLOSED, [text], 0)


@pytest.mark.parametrize("body", ["[1]", "{", "3", '{"a": NaN}', '{"a": 1} {}', "{" * 5000])
def test_a_body_that_is_no_object_is_text(body: str) -> None:
    text = call(body)
    assert run(FORM, [text]) == run(FORM, list(text)) == Parsed(content=text)


@pytest.mark.parametrize(
    ("between", "value"),
    [("\nx\n", "x"), ("x", "x"), ("\n\nx\n\n", "\nx\n"), ("\n", ""), ("\n\n", ""), ("", ""), ("\n x \n", " x ")],
)
def test_one_line_break_at_each_end_belongs_to_the_format(between: str, value: str) -> None:
    text = f"<function=f><parameter=text>{between}</parameter></function>"
    for pieces in all_cuts(text, num_random=5):
        assert run(LINES, pieces).calls == (("f", json.dumps({"text": value})),)


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("<function=g></function>", "", ["g"]),  # no outer tag
        ("<function=g></function></calls> x", " x", ["g"]),  # only its end
        ("<calls><function=g></function>", "", ["g"]),  # only its beginning
        ("<calls><function=g></function><function=f></function></calls>", "", ["g", "f"]),
        ("<calls><function=g></function> and <function=f></function></calls>.", " and.", ["g", "f"]),
        ("<calls>oops <function=g></function></calls>", "<calls>oops", ["g"]),
        ("<calls></calls><function=g></function>", "<calls></calls>", ["g"]),
        ("<calls><calls><function=g></function></calls></calls>", "<calls></calls>", ["g"]),
        ("<function=<function=g></function>", "<function=", ["g"]),
        ("<function=g></functio", "<function=g></functio", []),
    ],
)
def test_sections(text: str, content: str, names: list[str]) -> None:
    for pieces in all_cuts(text, num_random=5):
        result = run(LINES, pieces)
        assert ([name for name, _ in result.calls], result.content) == (names, content)


def test_a_call_outside_of_a_section_is_text_where_the_format_wants_one() -> None:
    text = '<invoke name="g"></invoke>'
    assert run(FORM, [text]) == Parsed(content=text)
    torn = f"<calls>oops {text} and {text}</calls> then {text}"
    result = run(FORM, [torn])
    assert [name for name, _ in result.calls] == ["g", "g"]
    assert result.content == f"<calls>oops and then {text}"


def test_a_call_is_held_back_until_it_is_complete_or_long() -> None:
    stream = TagStream(LINES, TOOLS, 60)
    head = "<function=f><parameter=number>1</parameter><parameter=text>"
    assert not stream.feed(head).tool_calls
    assert not stream.feed("a" * (60 - len(head))).tool_calls
    (first,) = stream.feed("b").tool_calls
    assert (first.name, first.arguments) == ("f", '{"number": 1, "text": "ab')
    (more,) = stream.feed("c\n").tool_calls
    assert (more.name, more.arguments) == (None, "c")  # the line break may belong to the format
    (last,) = stream.feed("\n</parameter></function>").tool_calls
    assert last.arguments == '\\n"}'


def test_what_breaks_after_it_was_given_out_keeps_that_and_all_else_is_text() -> None:
    good = "<function=g></function>"
    text = f"<function=f><parameter=text>{'a' * 300}</parameter><parameter=number>1</parameter> stray {good}"
    result = run(LINES, [text])
    assert result == run(LINES, list(text))
    assert result.calls == (("f", '{"text": "' + "a" * 300 + '", "number": 1'),)
    assert result.content == f" stray {good}"
    short = text.replace("a" * 300, "a")
    assert run(LINES, [short]) == Parsed(content=short.removesuffix(f" {good}"), calls=(("g", "{}"),))


def test_a_value_that_is_not_a_string_comes_when_it_is_whole() -> None:
    stream = TagStream(LINES, TOOLS, 0)
    deltas = [stream.feed(piece) for piece in ("<function=f><parameter=tree>", '{"a": ', "1}", "</parameter>")]
    assert [[made.arguments for made in delta.tool_calls] for delta in deltas] == [["{"], [], [], ['"tree": {"a": 1}']]
    broken = run(LINES, ['<function=f><parameter=tree>{"a": 1'], 0)
    assert broken == Parsed(content='<parameter=tree>{"a": 1', calls=(("f", "{"),))


VALUES = st.text(alphabet=st.sampled_from('ab<>/"\\\n {}[]=né🎉'), max_size=12).filter(
    lambda t: "</parameter>" not in t
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(["f", "g"]), st.dictionaries(st.sampled_from("abcd"), VALUES)), max_size=3),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([0, 30, DEFAULT_HOLD]),
)
def test_strings_come_back_whatever_is_in_them(
    calls: list[tuple[str, dict[str, str]]], places: list[int], hold: int
) -> None:
    text = "".join(
        f'<calls><invoke name="{name}">'
        + "".join(f'<parameter name="{key}" string="true">{value}</parameter>' for key, value in values.items())
        + "</invoke></calls>"
        for name, values in calls
    )
    result = run(FORM, cut(text, places), hold)
    assert [(name, json.loads(made)) for name, made in result.calls] == calls
    assert result.content == ""


@pytest.mark.parametrize("unit", ["<", "\n", "</parameter", "x", "<calls>", "<function=f>", "\n</para"])
def test_work_grows_with_the_text_and_not_faster(unit: str) -> None:
    """What is held undecided stays short, so that each piece costs only itself."""
    stream = TagStream(LINES, TOOLS, 0)
    stream.feed("<function=f><parameter=text>")
    for _ in range(2000):
        stream.feed(unit)
        assert len(stream._reader._text) <= 64
        assert len(stream._reader.record) <= 8


def test_markers_that_begin_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="begin another"):
        Markers("<a>", "<a>b")
    with pytest.raises(ValueError, match="character"):
        Markers("")


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.text(alphabet="<ab>/", max_size=20), st.lists(st.integers(0, 20), max_size=5))
def test_text_until_a_marker(text: str, places: list[int]) -> None:
    """The marker that begins first, also where one may begin inside of another's beginning."""
    found: list[str] = []
    markers = Markers("<ab>", "b>", "ab/")
    reader = Reader()

    def reading() -> Reading[None]:
        while (marker := (yield from reader.until(markers, found.append))) is not None:
            found.append(f"[{marker}]")

    machine = Machine(reader, reading())
    for piece in cut(text, places):
        machine.feed(piece)
    machine.finish()
    wanted, at = "", 0
    while at < len(text):
        here = next((marker for marker in markers.all if text.startswith(marker, at)), None)
        wanted += f"[{here}]" if here else text[at]
        at += len(here or "x")
    assert "".join(found) == wanted
    assert reader.num_read == len(text)
