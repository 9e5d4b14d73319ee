"""ToolParserContract: the laws of tool-call parsers.

Subclass it in a test module, name the plugin and give samples:

    class TestMine(ToolParserContract):
        name = "mine"
        samples = (
            ToolSample('<call>{"name": "f", "arguments": {"x": 1}}</call>', calls=(("f", {"x": 1}),)),
            ToolSample("No call at all.", content="No call at all."),
        )
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.interfaces.parsers import ParsedDelta, ParserStream, Tool, ToolChoice, ToolParser
from core.parsing.json_text import JsonScanner
from core.testing.contracts.base import Contract
from core.testing.contracts.tool_parser_streams import (
    PLAIN,
    Parsed,
    all_cuts,
    collect,
    cut,
    is_subsequence,
    num_calls,
    parse,
    squeeze,
)

TOOLS: tuple[Tool, ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
)


@dataclass(frozen=True, slots=True)
class ToolSample:
    """A text as the model writes it, and what it means.

    content: exactly what remains as content. calls: (name, arguments) in order. tools: what the request offers.
    composable: whether other text may stand before and after it without changing its calls; False for a call that
        the end of the text closes.
    """

    text: str
    content: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    tools: Sequence[Tool] = TOOLS
    composable: bool = True


class ToolParserContract(Contract):
    """Any chunking of a text gives the same calls and content; nothing of a text is lost; nothing raises.

    What "nothing is lost" means, for every text: if no call came out, content is the text. If calls came out, content
    is the text with characters left out, and text beside the calls is all there (white space aside).
    """

    kind = "tool_parsers"

    samples: ClassVar[Sequence[ToolSample]] = ()
    """At least one sample without a call, one with a call and one with two calls (unless not `several_calls`)."""

    malformed: ClassVar[Sequence[str]] = ()
    """Texts that look like calls and are none, e.g. a call with broken JSON. They must come back as content."""

    several_calls: ClassVar[bool] = True
    """Whether one text may hold several calls."""

    calls_anywhere: ClassVar[bool] = True
    """Whether a call may stand between other text; False where a call is the whole text."""

    arguments_as_they_come: ClassVar[bool] = False
    """Whether arguments are given out before their call is complete. Then a call that breaks may be left with the
    beginning of its arguments."""

    long: ClassVar[ToolSample | None] = None
    """With `arguments_as_they_come`: one call, long enough that its arguments are given out before its end."""

    max_examples: ClassVar[int] = 100
    """Random texts for each law."""

    _parser: ToolParser | None = None  # of this instance, so of one test

    def parser(self) -> ToolParser:
        """The parser as core constructs it, once for all requests."""
        if self._parser is None:
            parser = self.plugin()(self.context())
            assert isinstance(parser, ToolParser)
            self._parser = parser
        return self._parser

    def parsed(self, pieces: Sequence[str], tools: Sequence[Tool] = TOOLS) -> Parsed:
        stream = self.parser().stream(tools)
        assert isinstance(stream, ParserStream)
        result = parse(stream, pieces)
        assert not result.reasoning, "a tool parser gives out no reasoning"
        return result

    # -- samples

    def test_samples_are_given(self) -> None:
        assert any(not sample.calls for sample in self.samples), "samples lack a text without a call"
        assert any(sample.calls for sample in self.samples), "samples lack a text with a call"
        if self.several_calls:
            assert any(len(sample.calls) > 1 for sample in self.samples), "samples lack a text with two calls"
        if self.calls_anywhere:
            assert any(sample.calls and sample.composable for sample in self.samples), "no sample is composable"

    def test_samples_mean_what_they_should(self) -> None:
        for sample in self.samples:
            result = self.parsed([sample.text], sample.tools)
            assert _meaning(result) == _wanted(sample.calls), f"calls of {sample.text!r}"
            assert result.content == sample.content, f"content of {sample.text!r}"

    def test_malformed_calls_come_back_as_text(self) -> None:
        self.require(self.malformed, "malformed texts (the attribute is empty)")
        for text in self.malformed:
            for pieces in all_cuts(text, num_random=10):
                assert self.parsed(pieces) == Parsed(content=text), f"{text!r} as {pieces!r}"

    def test_any_cut_of_a_sample_gives_the_same(self) -> None:
        for sample in self.samples:
            whole = self.parsed([sample.text], sample.tools)
            for pieces in all_cuts(sample.text):
                assert self.parsed(pieces, sample.tools) == whole, f"{sample.text!r} as {pieces!r}"

    def test_long_calls_are_given_out_as_they_come(self) -> None:
        """A character at a time: the name and most of the arguments are there before the call's last quarter."""
        self.require(self.arguments_as_they_come, "arguments_as_they_come")
        self.require(self.long, "a long sample (the attribute is empty)")
        assert self.long is not None
        text, early = self.long.text, len(self.long.text) * 3 // 4
        stream = self.parser().stream(self.long.tools)
        deltas = [stream.feed(character) for character in text]
        begun = collect(deltas[:early])
        assert [name for name, _ in begun.calls] == [name for name, _ in self.long.calls], "the name comes late"
        whole = collect([*deltas, stream.finish()])
        assert _meaning(whole) == _wanted(self.long.calls)
        assert whole.content == self.long.content
        given, total = len(begun.calls[0][1]), len(whole.calls[0][1])
        assert given * 2 > total, f"{given} of {total} characters of arguments came before the call's last quarter"

    def test_work_grows_with_the_text_and_not_faster(self) -> None:
        """Calls of functions, counted, for texts and for texts twice as long, fed a character at a time. Samples are
        repeated as they are, and cut off in the middle."""
        for text in (sample.text for sample in self.samples):
            for part in {text, text[: len(text) // 2]} - {""}:
                times = -(-250 // len(part))
                once, twice = (num_calls(self.parser().stream(TOOLS), part * times * n) for n in (1, 2))
                assert twice <= 2.5 * once + 2000, f"{part!r} x {times}: {once} calls, twice as often: {twice}"

    def test_broken_off_samples(self) -> None:
        """Every beginning of a sample: no error, no invention, and its text is there where no call came out."""
        for sample in self.samples:
            for end in range(len(sample.text)):
                text = sample.text[:end]
                result = self.parsed(list(text), sample.tools)
                self._check_conservation(text, result)
                names = [name for name, _ in sample.calls]
                got = [name for name, _ in result.calls]
                assert got == names[: len(got)], f"{text!r} gave calls {got}, the whole text has {names}"

    # -- the conversation

    def test_call_ids_tell_calls_apart(self) -> None:
        ids = [self.parser().call_id("get_weather", number) for number in range(20)]
        assert all(made is None for made in ids) or len({made for made in ids if made}) == len(ids), ids

    # -- laws of all texts

    def test_any_text_in_any_pieces(self) -> None:
        """Random texts made of pieces of the samples, of samples with an error in them, and of anything."""

        @hypothesis_settings(max_examples=self.max_examples, deadline=None, database=None, derandomize=True)
        @given(st.lists(self._pieces(), max_size=8).map("".join), st.lists(st.integers(0, 300), max_size=12))
        def check(text: str, places: list[int]) -> None:
            whole = self.parsed([text])
            self._check_conservation(text, whole)
            assert self.parsed(cut(text, places)) == whole, f"{text!r} as {cut(text, places)!r}"
            assert self.parsed(list(text)) == whole, f"{text!r} one character at a time"

        check()

    def test_text_beside_calls_is_kept(self) -> None:
        self.require(self.calls_anywhere, "calls_anywhere")
        usable = [sample for sample in self.samples if sample.composable]
        if not self.several_calls:
            usable = [sample for sample in usable if not sample.calls]
        plain = st.text(PLAIN, max_size=12)
        calls = st.sampled_from([sample for sample in self.samples if sample.composable and sample.calls])

        @hypothesis_settings(max_examples=self.max_examples, deadline=None, database=None, derandomize=True)
        @given(plain, calls, st.lists(st.tuples(plain, st.sampled_from(usable or [ToolSample("")])), max_size=3), plain)
        def check(before: str, first: ToolSample, more: list[tuple[str, ToolSample]], after: str) -> None:
            text, content, wanted = before + first.text, before + first.content, list(first.calls)
            for between, sample in more:
                text += between + sample.text
                content += between + sample.content
                wanted += sample.calls
            result = self.parsed([text + after])
            assert _meaning(result) == _wanted(wanted), f"calls of {text + after!r}"
            assert squeeze(result.content) == squeeze(content + after), f"content of {text + after!r}"

        check()

    def test_plain_text_passes(self) -> None:
        @hypothesis_settings(max_examples=self.max_examples, deadline=None, database=None, derandomize=True)
        @given(st.text(st.one_of(st.sampled_from(PLAIN), st.characters(codec="utf-8", categories=("L", "N", "Zs")))))
        def check(text: str) -> None:
            assert self.parsed(list(text)) == Parsed(content=text)

        check()

    # -- the object

    def test_streams_are_independent(self) -> None:
        """One parser object serves all requests: texts in turns, a character each, give what they give alone."""
        parser = self.parser()
        samples = list(self.samples) * 2
        streams = [parser.stream(sample.tools) for sample in samples]
        deltas: list[list[ParsedDelta]] = [[] for _ in samples]
        for position in range(max(len(sample.text) for sample in samples)):
            for sample, stream, own in zip(samples, streams, deltas, strict=True):
                if position < len(sample.text):
                    own.append(stream.feed(sample.text[position]))
        for sample, stream, own in zip(samples, streams, deltas, strict=True):
            together = collect([*own, stream.finish()])
            assert together == self.parsed(list(sample.text), sample.tools), f"{sample.text!r} beside others"

    def test_policy_stays_with_core(self) -> None:
        """Tools are not changed, and a call of a tool that was not offered comes out: what to do is core's to say."""
        for sample in self.samples:
            tools = copy.deepcopy(list(sample.tools))
            named = [name for name, _ in self.parsed([sample.text], tools).calls]
            assert tools == list(sample.tools), "the parser changed the request's tools"
            assert [name for name, _ in self.parsed([sample.text], []).calls] == named, "calls depend on the offer"

    def test_structure_is_a_tree_or_none(self) -> None:
        """Its form only: what it allows can be checked with a grammar backend."""
        for choice in (ToolChoice("required"), ToolChoice("required", parallel=False), ToolChoice("auto")):
            structure = self.parser().structure(TOOLS, choice)
            if structure is not None:
                assert isinstance(structure.get("type"), str), f"structure({choice}) has no type"
                json.dumps(structure)

    # -- helpers

    def _check_conservation(self, text: str, result: Parsed) -> None:
        if not result.calls:
            assert result.content == text, f"text was lost or invented: {text!r} became {result.content!r}"
        assert is_subsequence(result.content, text), f"content {result.content!r} is not of {text!r}"
        for _, arguments in result.calls:
            what = f"arguments {arguments!r} of a call in {text!r}"
            scanner = JsonScanner()
            scanner.feed(arguments)
            if self.arguments_as_they_come and not scanner.complete:
                assert not scanner.failed, f"{what} are not the beginning of JSON"
                assert arguments.lstrip()[:1] in ("", "{"), f"{what} begin no JSON object"
            else:
                assert isinstance(json.loads(arguments), dict), f"{what} are no JSON object"

    def _pieces(self) -> st.SearchStrategy[str]:
        samples = st.sampled_from([*(sample.text for sample in self.samples), *self.malformed])
        return st.one_of(
            samples,
            st.tuples(samples, st.integers(0, 200), st.integers(0, 200)).map(lambda p: p[0][min(p[1:]) : max(p[1:])]),
            st.tuples(samples, st.integers(0, 200), st.text(max_size=2)).map(_with_an_error),
            st.text(max_size=6),
            st.sampled_from(['{"name": "f", "arguments": {"a": {"b": [1, "}"]}}}', *'"\\{}[]<>', "\n"]),
        )


def _with_an_error(drawn: tuple[str, int, str]) -> str:
    text, place, instead = drawn
    return text[:place] + instead + text[place + 1 :]


def _meaning(result: Parsed) -> list[tuple[str, Any]]:
    meaning = []
    for name, arguments in result.calls:
        try:
            meaning.append((name, json.loads(arguments)))
        except ValueError:
            raise AssertionError(f"arguments of {name!r} are no valid JSON: {arguments!r}") from None
    return meaning


def _wanted(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Any]]:
    return [(name, dict(arguments)) for name, arguments in calls]
