"""The suite of reasoning parsers: this repository's pass, broken ones do not."""

from __future__ import annotations

import pytest

from core.interfaces.parsers import ParsedDelta, ParserStream, ReasoningParser
from core.testing.contracts.reasoning_parser import ReasoningParserContract, ReasoningSample

SAMPLES = (
    ReasoningSample("<think>four</think>4", reasoning="four", content="4"),
    ReasoningSample("four</think>4 <b>", reasoning="four", content="4 <b>", prompt_opens=True),
    ReasoningSample("just text </thin", content="just text </thin"),
    ReasoningSample("never closed", reasoning="never closed", prompt_opens=True),
)


class TestDemo(ReasoningParserContract):
    name = "demo"
    markers = ("<think>", "</think>")
    samples = (
        *SAMPLES,
        ReasoningSample("<think>\nfour\n</think>\n\n4\n", reasoning="four", content="4\n"),
        ReasoningSample("no <think>x</think>", content="no <think>x</think>"),
    )


class _Stream(ParserStream):
    """A correct machine, which keeps everything until the end, with switches that break it."""

    def __init__(self, fault: str, opens: bool) -> None:
        self.fault, self.opens, self.text = fault, opens, ""

    def feed(self, delta: str) -> ParsedDelta:
        self.text += delta
        if self.fault == "decides at once" and not self.opens and "<think>" not in self.text:
            text, self.text = self.text, ""
            return ParsedDelta(content=text)
        return ParsedDelta()

    def finish(self) -> ParsedDelta:
        text, opens = self.text, self.opens
        if self.fault == "forgets the prompt":
            opens = False
        if text.startswith("<think>") and not opens:
            text, opens = text.removeprefix("<think>"), True
        if not opens:
            if self.fault == "drops every marker":
                text = text.replace("think", "")
            return ParsedDelta(content=text)
        reasoning, closed, content = text.partition("</think>")
        if self.fault == "drops unclosed reasoning" and not closed:
            return ParsedDelta()
        if self.fault == "gives reasoning twice":
            content = reasoning + content
        return ParsedDelta(content=content, reasoning=reasoning)


def suite(fault: str) -> ReasoningParserContract:
    class Parser(ReasoningParser):
        kept: ParserStream | None = None

        def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
            fresh = _Stream(fault, prompt_opens_reasoning)
            if fault == "one state for all":
                self.kept = self.kept or fresh
                return self.kept
            return fresh

    class Suite(ReasoningParserContract):
        name = "mutant"
        implementation = Parser
        markers = ("<think>", "</think>")
        samples = SAMPLES
        max_examples = 60

    return Suite()


def test_the_correct_machine_passes() -> None:
    contract = suite("")
    for law in dir(contract):
        if law.startswith("test_"):
            getattr(contract, law)()


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("decides at once", "test_any_cut_of_a_sample_gives_the_same"),
        ("forgets the prompt", "test_samples_mean_what_they_should"),
        ("drops every marker", "test_any_text_in_any_pieces"),
        ("drops unclosed reasoning", "test_text_without_markers_is_of_one_kind"),
        ("gives reasoning twice", "test_any_text_in_any_pieces"),
        ("one state for all", "test_streams_are_independent"),
    ],
)
def test_mutants_are_caught(fault: str, law: str) -> None:
    with pytest.raises(AssertionError):
        getattr(suite(fault), law)()
