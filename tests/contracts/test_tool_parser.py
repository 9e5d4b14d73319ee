"""The suite of tool parsers: this repository's pass, broken ones do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from core.interfaces.parsers import ParsedDelta, ParserStream, Tool, ToolCallDelta, ToolParser
from core.testing.contracts.tool_parser import ToolParserContract, ToolSample
from core.testing.contracts.tool_parser_streams import Parsed

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}}\n</tool_call>'
MEANT = ("get_weather", {"city": "Köln", "days": 3})
NESTED = '<tool_call>{"name": "f", "arguments": {"a": {"b": ["</b>", 1.5, null, "{\\"x\\": 1}"]}}}</tool_call>'
MALFORMED = (
    "<tool_call>no JSON</tool_call>",
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "argum',
    "a < b, and <tool is no marker",
    "</tool_call>",
)
SAMPLES = (
    ToolSample("Hello there.\n", content="Hello there.\n"),
    ToolSample(CALL, calls=(MEANT,)),
    ToolSample(f"Let me look.\n{CALL}", content="Let me look.", calls=(MEANT,)),
    ToolSample(f"{CALL}\n{NESTED}", calls=(MEANT, ("f", {"a": {"b": ["</b>", 1.5, None, '{"x": 1}']}}))),
    ToolSample(CALL.removesuffix("</tool_call>"), calls=(MEANT,), composable=False),
)


class TestDemo(ToolParserContract):
    name = "demo"
    samples = SAMPLES
    malformed = MALFORMED


class _Stream(ParserStream):
    """A correct machine with switches that break it."""

    def __init__(self, fault: str, shared: list[str] | None = None) -> None:
        self.fault, self.text, self.count, self.given = fault, "", 0, 0
        self.shared = shared

    def feed(self, delta: str) -> ParsedDelta:
        out = ParsedDelta()
        self.given += len(delta)
        if self.fault == "reads all again":
            for _ in range(self.given):
                delta.strip()
        if self.fault == "loses what a delta cuts" and "<tool_call>" not in self.text + delta:
            out.content += delta
            return out
        self.text += delta
        if self.shared is not None:
            self.shared.append(delta)
            self.text = "".join(self.shared)
        while True:
            before, opened, rest = self.text.partition("<tool_call>")
            body, closed, behind = rest.partition("</tool_call>")
            if not (opened and closed):
                break
            out.content += before
            self.text = behind
            self._call(body, out)
        if self.fault == "holds nothing back" and "<tool_call>" not in self.text:
            out.content, self.text = out.content + self.text, ""
        return out

    def finish(self) -> ParsedDelta:
        out = ParsedDelta()
        before, opened, rest = self.text.partition("<tool_call>")
        out.content += before
        if self.fault == "drops what is unfinished":
            return out
        if opened:
            self._call(rest, out, closed=False)
        return out

    def _call(self, body: str, out: ParsedDelta, *, closed: bool = True) -> None:
        if self.fault == "raises at bad JSON":
            json.loads(body)
        try:
            call = json.loads(body)
            name, arguments = call["name"], call["arguments"]
            if not (isinstance(name, str) and name and isinstance(arguments, dict) and len(call) == 2):
                raise ValueError
        except (ValueError, LookupError, TypeError, RecursionError):
            if self.fault != "drops malformed calls":
                out.content += f"<tool_call>{body}" + ("</tool_call>" if closed else "")
            return
        text = json.dumps(arguments)
        index = 0 if self.fault == "always index 0" else self.count
        self.count += 1
        if self.fault == "name in every delta":
            out.tool_calls += [ToolCallDelta(index, name, text[:1]), ToolCallDelta(index, name, text[1:])]
        elif self.fault == "arguments before the name":
            out.tool_calls += [ToolCallDelta(index, None, text), ToolCallDelta(index, name)]
        elif self.fault == "arguments written anew":
            out.tool_calls.append(ToolCallDelta(index, name, str(arguments)))
        else:
            out.tool_calls += [ToolCallDelta(index, name), ToolCallDelta(index, None, text[:2]),
                               ToolCallDelta(index, None, text[2:])]  # fmt: skip


class _Parser(ToolParser):
    fault = ""

    def __init__(self, ctx: Any = None) -> None:
        super().__init__(ctx)
        self.shared: list[str] = []

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        if self.fault == "knows only what is offered" and not tools:
            return _Nothing()
        return _Stream(self.fault, self.shared if self.fault == "one state for all" else None)


class _Nothing(ParserStream):
    """Takes everything for text."""

    def feed(self, delta: str) -> ParsedDelta:
        return ParsedDelta(content=delta)

    def finish(self) -> ParsedDelta:
        return ParsedDelta()


def suite(wanted_fault: str) -> ToolParserContract:
    class Parser(_Parser):
        fault = wanted_fault

    class Suite(ToolParserContract):
        name = "mutant"
        implementation = Parser
        samples = (SAMPLES[0], SAMPLES[1], ToolSample(f"{CALL}{NESTED}", calls=SAMPLES[3].calls))
        malformed = MALFORMED
        max_examples = 60

    return Suite()


def test_the_correct_machine_passes() -> None:
    contract = suite("")
    for law in dir(contract):
        if law.startswith("test_") and law != "test_long_calls_are_given_out_as_they_come":
            getattr(contract, law)()


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("loses what a delta cuts", "test_any_cut_of_a_sample_gives_the_same"),
        ("holds nothing back", "test_any_cut_of_a_sample_gives_the_same"),
        ("drops what is unfinished", "test_broken_off_samples"),
        ("raises at bad JSON", "test_malformed_calls_come_back_as_text"),
        ("drops malformed calls", "test_any_text_in_any_pieces"),
        ("always index 0", "test_samples_mean_what_they_should"),
        ("name in every delta", "test_samples_mean_what_they_should"),
        ("arguments before the name", "test_samples_mean_what_they_should"),
        ("arguments written anew", "test_samples_mean_what_they_should"),
        ("one state for all", "test_streams_are_independent"),
        ("knows only what is offered", "test_policy_stays_with_core"),
    ],
)
def test_mutants_are_caught(fault: str, law: str) -> None:
    with pytest.raises(AssertionError if fault != "raises at bad JSON" else Exception):
        getattr(suite(fault), law)()


def test_arguments_that_come_late_are_caught() -> None:
    contract = suite("")
    type(contract).arguments_as_they_come = True
    text = CALL.replace("Köln", "Köln" * 100)
    type(contract).long = ToolSample(text, calls=(("get_weather", {"city": "Köln" * 100, "days": 3}),))
    with pytest.raises(AssertionError, match="comes late"):
        contract.test_long_calls_are_given_out_as_they_come()


def test_work_that_grows_faster_than_the_text_is_caught() -> None:
    contract = suite("reads all again")
    with pytest.raises(AssertionError, match="twice as often"):
        contract.test_work_grows_with_the_text_and_not_faster()


def test_given_arguments_must_begin_json() -> None:
    contract = suite("")
    type(contract).arguments_as_they_come = True
    contract._check_conservation('f {"a": x', Parsed("", "", (("f", '{"a": '),)))
    for arguments in ('{"a": x', "[1", "3", "{}}", '{"a"'[1:]):
        with pytest.raises((AssertionError, ValueError)):
            contract._check_conservation(f"f {arguments}", Parsed("", "", (("f", arguments),)))


def test_samples_are_asked_for() -> None:
    class Empty(ToolParserContract):
        name = "demo"

    with pytest.raises(AssertionError, match="samples lack"):
        Empty().test_samples_are_given()
