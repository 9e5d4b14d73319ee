"""ReasoningParserContract: the laws of reasoning parsers.

class TestMine(ReasoningParserContract):
    name = "mine"
    markers = ("<think>", "</think>")
    samples = (
        ReasoningSample("<think>four</think>4", reasoning="four", content="4"),
        ReasoningSample("four</think>4", reasoning="four", content="4", prompt_opens=True),
        ReasoningSample("just text", content="just text"),
    )
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.interfaces.parsers import ParserStream, ReasoningParser
from core.testing.contracts.base import Contract
from core.testing.contracts.tool_parser_streams import PLAIN, Parsed, all_cuts, cut, parse, squeeze


@dataclass(frozen=True, slots=True)
class ReasoningSample:
    """A text as the model writes it. prompt_opens: the chat template has already written the opening marker."""

    text: str
    reasoning: str = ""
    content: str = ""
    prompt_opens: bool = False


class ReasoningParserContract(Contract):
    """Any chunking of a text gives the same reasoning and content; only markers, and white space beside them, go.

    What "nothing is lost" means, for every text: without white space, it is reasoning and content, each in its own
    order, with whole markers in between. A text without markers is all content, or all reasoning if the prompt opened
    it.
    """

    kind = "reasoning_parsers"

    markers: ClassVar[Sequence[str]] = ()
    """The strings that belong to the format, e.g. ("<think>", "</think>")."""

    samples: ClassVar[Sequence[ReasoningSample]] = ()
    """At least one with reasoning, one without, and one whose prompt opened it (unless not `prompt_may_open`)."""

    prompt_may_open: ClassVar[bool] = True
    """Whether chat templates of this format may write the opening marker themselves."""

    prefix: ClassVar[str] = ""
    """For parsers that split nothing off: what content begins with where the prompt opened reasoning, unless the text
    itself does."""

    max_examples: ClassVar[int] = 100
    """Random texts for each law."""

    _parser: ReasoningParser | None = None  # of this instance, so of one test

    def parser(self) -> ReasoningParser:
        """The parser as core constructs it, once for all requests."""
        if self._parser is None:
            parser = self.plugin()(self.context())
            assert isinstance(parser, ReasoningParser)
            self._parser = parser
        return self._parser

    def parsed(self, pieces: Sequence[str], prompt_opens: bool) -> Parsed:
        stream = self.parser().stream(prompt_opens)
        assert isinstance(stream, ParserStream)
        result = parse(stream, pieces)
        assert not result.calls, "a reasoning parser gives out no tool calls"
        return result

    def test_samples_are_given(self) -> None:
        assert self.markers, "markers: the strings that belong to the format"
        assert all(squeeze(marker) for marker in self.markers), "a marker is empty"
        split = any(sample.reasoning for sample in self.samples)
        assert split or self.prefix, "samples lack a text with reasoning"
        assert any(not sample.reasoning for sample in self.samples), "samples lack a text without reasoning"
        if self.prompt_may_open:
            assert any(sample.prompt_opens for sample in self.samples), "samples lack one whose prompt opened it"

    def test_samples_mean_what_they_should(self) -> None:
        for sample in self.samples:
            wanted = Parsed(sample.content, sample.reasoning)
            assert self.parsed([sample.text], sample.prompt_opens) == wanted, f"{sample.text!r}"

    def test_any_cut_of_a_sample_gives_the_same(self) -> None:
        for sample in self.samples:
            whole = self.parsed([sample.text], sample.prompt_opens)
            for pieces in all_cuts(sample.text):
                assert self.parsed(pieces, sample.prompt_opens) == whole, f"{sample.text!r} as {pieces!r}"

    def test_broken_off_samples(self) -> None:
        for sample in self.samples:
            for end in range(len(sample.text)):
                text = sample.text[:end]
                self._check_conservation(text, self.parsed(list(text), sample.prompt_opens), sample.prompt_opens)

    def test_any_text_in_any_pieces(self) -> None:
        """Random texts made of markers, parts of markers, pieces of the samples, and of anything."""
        samples = st.sampled_from([sample.text for sample in self.samples])
        markers = st.sampled_from(list(self.markers))
        piece = st.one_of(
            markers,
            st.tuples(markers, st.integers(1, 20)).map(lambda p: p[0][: p[1]]),
            st.tuples(samples, st.integers(0, 99), st.integers(0, 99)).map(lambda p: p[0][min(p[1:]) : max(p[1:])]),
            st.text(max_size=5),
            st.sampled_from(["\n", " ", "\n\n"]),
        )

        @hypothesis_settings(max_examples=self.max_examples, deadline=None, database=None, derandomize=True)
        @given(st.lists(piece, max_size=8).map("".join), st.lists(st.integers(0, 99), max_size=10), self._opens())
        def check(text: str, places: list[int], opens: bool) -> None:
            whole = self.parsed([text], opens)
            self._check_conservation(text, whole, opens)
            assert self.parsed(cut(text, places), opens) == whole, f"{text!r} as {cut(text, places)!r}"
            assert self.parsed(list(text), opens) == whole, f"{text!r} one character at a time"

        check()

    def test_text_without_markers_is_of_one_kind(self) -> None:
        """Parts of markers included, which must not stay behind at the end of the text."""
        parts = [marker[:end] for marker in self.markers for end in range(1, len(marker))]
        piece = st.one_of(st.text(PLAIN, max_size=8), st.sampled_from(parts or ["a"]))

        @hypothesis_settings(max_examples=self.max_examples, deadline=None, database=None, derandomize=True)
        @given(st.lists(piece, max_size=5).map("".join), self._opens())
        def check(text: str, opens: bool) -> None:
            if any(marker in text for marker in self.markers):
                return
            result = self.parsed(list(text), opens)
            if opens and self.prefix:
                assert result == Parsed(content=self.prefix + text)
            elif opens:
                assert result.content == "", f"{text!r} never closes the reasoning"
                assert squeeze(result.reasoning) == squeeze(text), f"reasoning of {text!r}"
            else:
                assert result == Parsed(content=text)

        check()

    def test_streams_are_independent(self) -> None:
        """One parser object serves all requests."""
        parser = self.parser()
        for first in self.samples:
            for second in self.samples:
                one, other = parser.stream(first.prompt_opens), parser.stream(second.prompt_opens)
                got = ""
                for position in range(max(len(first.text), len(second.text))):
                    got += one.feed(first.text[position : position + 1]).reasoning
                    other.feed(second.text[position : position + 1])
                other.finish()
                got += one.finish().reasoning
                assert got == first.reasoning, f"{first.text!r} beside {second.text!r}"

    def _opens(self) -> st.SearchStrategy[bool]:
        return st.booleans() if self.prompt_may_open else st.just(False)

    def test_end_marker_ends_reasoning(self) -> None:
        """Structured output begins behind `end_marker`, so what stands there must be content."""
        marker = self.parser().end_marker or ""
        self.require(marker, "end_marker (it is None)")
        assert marker in self.markers, f"end_marker {marker!r} is none of the markers"
        for sample in self.samples:
            before, closed, _ = sample.text.partition(marker)
            if sample.reasoning and closed:
                content = self.parsed([f"{before}{marker}{{}}"], sample.prompt_opens).content
                assert content == "{}", f"{content!r} is the content behind {marker!r}"

    def _check_conservation(self, text: str, result: Parsed, opens: bool) -> None:
        if self.prefix and opens and not squeeze(text).startswith(squeeze(self.prefix)):
            assert result.content.startswith(self.prefix), f"{result.content!r} does not begin with {self.prefix!r}"
            result = Parsed(result.content.removeprefix(self.prefix), result.reasoning, result.calls)
        whole, reasoning, content = squeeze(text), squeeze(result.reasoning), squeeze(result.content)
        assert _is_woven(whole, reasoning, content, [squeeze(marker) for marker in self.markers]), (
            f"text was lost or invented: {text!r} became reasoning {result.reasoning!r} and content {result.content!r}"
        )


def _is_woven(whole: str, first: str, second: str, markers: Sequence[str]) -> bool:
    """Whether `whole` is `first` and `second`, each in order, with whole markers in between."""
    seen: set[tuple[int, int, int]] = set()
    open_states = [(0, 0, 0)]
    while open_states:
        state = open_states.pop()
        if state in seen:
            continue
        seen.add(state)
        at, a, b = state
        if at == len(whole):
            if a == len(first) and b == len(second):
                return True
            continue
        if a < len(first) and first[a] == whole[at]:
            open_states.append((at + 1, a + 1, b))
        if b < len(second) and second[b] == whole[at]:
            open_states.append((at + 1, a, b + 1))
        open_states.extend((at + len(marker), a, b) for marker in markers if whole.startswith(marker, at))
    return False
