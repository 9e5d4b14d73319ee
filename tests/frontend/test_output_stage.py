"""The output stage gives the same answer however the tokens come, and never a part of a stop string."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_parsers import CallParser, ThinkParser

from core.frontend.output import OutputDelta, OutputStage, PromptLogprob
from core.frontend.tokenizer import Tokenizer
from core.frontend.tool_policy import ToolPolicy
from core.interfaces.params import SamplingParams

TOOL = {"type": "function", "function": {"name": "f"}}
TEXTS = st.text(alphabet=st.sampled_from("abSTOP. 🙂é日<think>/tool_call{}\n"), max_size=50)
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            "<think>", "</think>", "hello", " world", "🙂", "日本", "STOP", "ST", "<|im_end|>", "<tool_call>",
            "</tool_call>",
            '<tool_call>{"name": "f", "arguments": {"a": "🙂"}}</tool_call>',
            '<tool_call>{"name": "other", "arguments": {}}</tool_call>', "<", "x",
        ]
    ),
    max_size=10,
).map("".join)  # fmt: skip


@dataclass
class Top:
    logprob: float
    ids: list[int]
    logprobs: list[float]


@dataclass
class FakeChunk:
    tokens: list[int]
    finish_reason: str | None = None
    stop_token: int | None = None
    cached_tokens: int | None = None
    logprobs: list[Top] | None = None
    error: str | None = None
    extras: list | None = None


@dataclass
class Answer:
    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    matched_stop: int | str | None = None


def collect(stage: OutputStage, chunks: list[FakeChunk]) -> tuple[Answer, list[OutputDelta]]:
    answer, deltas = Answer(), []
    for chunk in chunks:
        delta = stage.feed(chunk)
        deltas.append(delta)
        answer.text += delta.text
        answer.reasoning += delta.reasoning
        for piece in delta.tool_calls:
            if piece.name is not None:
                assert piece.index == len(answer.calls)
                answer.calls.append([piece.name, ""])
            answer.calls[piece.index][1] += piece.arguments
        answer.logprobs += delta.logprobs
        answer.token_ids += delta.token_ids
        answer.reasoning_tokens += delta.reasoning_tokens
        if delta.finish_reason is not None:
            answer.finish_reason, answer.matched_stop = delta.finish_reason, delta.matched_stop
            break
    return answer, deltas


def chunked(ids: list[int], cuts: list[int], *, reason: str = "length", logprobs: bool = False) -> list[FakeChunk]:
    places = sorted({0, len(ids), *(place for place in cuts if place <= len(ids))})
    chunks = [FakeChunk(ids[a:b]) for a, b in itertools.pairwise(places)] or [FakeChunk([])]
    for chunk in chunks:
        if logprobs:
            chunk.logprobs = [Top(-0.5, [token], [-0.5]) for token in chunk.tokens]
    chunks[-1].finish_reason = reason
    if reason == "stop" and ids:
        chunks[-1].stop_token = ids[-1]
    return chunks


@pytest.fixture(scope="module")
def tokenizer(byte_level: Path) -> Tokenizer:
    return Tokenizer.load(byte_level)


CUTS = st.lists(st.integers(0, 120), max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(TEXTS, FRAGMENTS),
    cuts=CUTS,
    stop=st.sampled_from([(), ("STOP",), ("🙂", "TO"), ("hello w", "</th")]),
    expressions=st.sampled_from([(), (r"[A-Z]+\b",), (r"l+o\s", r"\n+"), ("🙂.*🙂",)]),
    keep=st.booleans(),
    parse=st.booleans(),
    opens=st.booleans(),
    min_tokens=st.integers(0, 6),
    end=st.booleans(),
)
def test_whole_answer_is_the_stream_fed_once(
    tokenizer: Tokenizer, text: str, cuts: list[int], stop: tuple, expressions: tuple, keep: bool, parse: bool,
    opens: bool, min_tokens: int, end: bool,
) -> None:  # fmt: skip
    ids = tokenizer.encode(text) + ([2] if end else [])
    sampling = SamplingParams(
        stop=stop, stop_regex=expressions, include_stop_str_in_output=keep, min_tokens=min_tokens, logprobs=0
    )

    def run(places: list[int]) -> Answer:
        stage = OutputStage(
            tokenizer,
            sampling,
            reasoning=ThinkParser().stream(opens) if parse else None,
            tools=CallParser().stream([TOOL]) if parse else None,
            policy=ToolPolicy([TOOL], new_id=lambda: "id"),
        )
        reason = "stop" if end else "length"
        return collect(stage, chunked(ids, places, reason=reason, logprobs=True))[0]

    whole = run([])
    assert run(cuts) == whole
    assert run(list(range(len(ids)))) == whole
    assert whole.finish_reason is not None


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, cuts=CUTS, stop=st.lists(st.text("STOPab🙂", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_never_leak(tokenizer: Tokenizer, text: str, cuts: list[int], stop: list[str]) -> None:
    ids = tokenizer.encode(text)
    sampling = SamplingParams(stop=tuple(stop), logprobs=0)
    answer, deltas = collect(OutputStage(tokenizer, sampling), chunked(ids, cuts, logprobs=True))
    places = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stop)]
    if not places:
        assert (answer.text, answer.finish_reason) == (text, "length")
        assert answer.token_ids == ids
        return
    matched = max((s for s in stop if text[: places[0]].endswith(s)), key=len)
    assert answer.text == text[: places[0] - len(matched)]
    assert (answer.finish_reason, answer.matched_stop) == ("stop", matched)
    # Tokens after the one that completed the stop string do not count, and no log-probability tells of them.
    assert len(tokenizer.decode(answer.token_ids)) >= places[0]
    assert len(tokenizer.decode(answer.token_ids[:-1])) < places[0] or "\ufffd" in tokenizer.decode(
        answer.token_ids[:-1]
    )
    assert all(entry.text_offset < len(answer.text) for entry in answer.logprobs)
    # At no moment is more out than could be known to be safe.
    assert all(text.startswith("".join(d.text for d in deltas[:k])) for k in range(len(deltas)))


def test_kept_stop_string(tokenizer: Tokenizer) -> None:
    sampling = SamplingParams(stop=("STOP",), include_stop_str_in_output=True)
    answer, _ = collect(OutputStage(tokenizer, sampling), chunked(tokenizer.encode("hello STOP world"), [1, 2, 3]))
    assert answer.text == "hello STOP"


@pytest.mark.parametrize("keep", [False, True])
def test_stop_expressions_beside_stop_strings(tokenizer: Tokenizer, keep: bool) -> None:
    sampling = SamplingParams(
        stop=("zzz",), stop_regex=(r"\d+ (?:am|pm)",), include_stop_str_in_output=keep, logprobs=0
    )
    answer, _ = collect(
        OutputStage(tokenizer, sampling), chunked(tokenizer.encode("at 12 am."), list(range(20)), logprobs=True)
    )
    assert answer.text == ("at 12 am" if keep else "at ")
    assert (answer.finish_reason, answer.matched_stop) == ("stop", r"\d+ (?:am|pm)")
    assert all(entry.text_offset < len(answer.text) for entry in answer.logprobs)
    answer, _ = collect(OutputStage(tokenizer, sampling), chunked(tokenizer.encode("12 zzz am"), []))
    assert answer.matched_stop == "zzz"


def test_stop_before_min_tokens_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a STOP b STOP c")
    early = len(tokenizer.encode("a STOP"))
    sampling = SamplingParams(stop=("STOP",), min_tokens=early)
    answer, _ = collect(OutputStage(tokenizer, sampling), chunked(ids, list(range(99))))
    assert answer.text == "a STOP b "


@pytest.mark.parametrize("keep", [False, True])
def test_stop_token_shows_only_if_kept(tokenizer: Tokenizer, keep: bool) -> None:
    word = tokenizer.encode("hello")
    ids = [*word, *tokenizer.encode("x")]
    sampling = SamplingParams(stop_token_ids=(ids[-1],), include_stop_str_in_output=keep, logprobs=0)
    answer, _ = collect(OutputStage(tokenizer, sampling), chunked(ids, [], reason="stop", logprobs=True))
    assert answer.text == ("hellox" if keep else "hello")
    assert answer.matched_stop == ids[-1]
    assert answer.token_ids == ids  # it was generated, so it counts
    assert len(answer.logprobs) == len(ids) - (not keep)


def test_logprobs_wait_for_their_text_unless_told(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("👾S")
    assert len(ids) > 2
    for align in (True, False):
        stage = OutputStage(tokenizer, SamplingParams(stop=("STOP",), logprobs=0), align_logprobs=align)
        _, deltas = collect(stage, chunked(ids, list(range(99)), logprobs=True))
        counts = [len(delta.logprobs) for delta in deltas]
        assert sum(counts) == len(ids)
        assert counts == ([1] * len(ids) if not align else [0] * (len(ids) - 2) + [len(ids) - 1, 1])


def parsed(tokenizer: Tokenizer, text: str, *, tools: list | None = None, parallel: bool = True) -> Answer:
    tools = [TOOL] if tools is None else tools
    stage = OutputStage(
        tokenizer,
        SamplingParams(),
        reasoning=ThinkParser().stream(False),
        tools=CallParser().stream(tools),
        policy=ToolPolicy(tools, parallel),
    )
    return collect(stage, chunked([*tokenizer.encode(text), 2], list(range(99)), reason="stop"))[0]


CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def test_reasoning_and_calls(tokenizer: Tokenizer) -> None:
    answer = parsed(tokenizer, f"<think>hm</think>Let me see.{CALL}{CALL}")
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("hm", "Let me see.", "tool_calls")
    assert answer.calls == [["f", '{"a": 1}'], ["f", '{"a": 1}']]


def test_one_call_at_a_time(tokenizer: Tokenizer) -> None:
    assert parsed(tokenizer, CALL + CALL, parallel=False).calls == [["f", '{"a": 1}']]


def test_undeclared_tools_come_back_as_text(tokenizer: Tokenizer) -> None:
    answer = parsed(tokenizer, f"one {CALL} two", tools=[{"type": "function", "function": {"name": "g"}}])
    assert answer.calls == []
    assert answer.text == 'one  two{"name": "f", "arguments": {"a": 1}}'
    assert answer.finish_reason == "stop"


def test_special_tokens_stay_hidden_while_parsing(tokenizer: Tokenizer) -> None:
    answer = parsed(tokenizer, "<think>a<|im_start|>b</think>c<|im_start|>d")
    assert (answer.reasoning, answer.text) == ("ab", "cd")


def test_calls_that_hit_the_limit_say_length(tokenizer: Tokenizer) -> None:
    stage = OutputStage(tokenizer, SamplingParams(), tools=CallParser().stream([TOOL]), policy=ToolPolicy([TOOL]))
    answer, _ = collect(stage, chunked(tokenizer.encode(CALL), [3], reason="length"))
    assert answer.finish_reason == "length"
    assert len(answer.calls) == 1


@dataclass
class FakeExtras:
    prompt_start: int = 0
    prompt_logprobs: list[Top] | None = None
    hidden: bytes = b""
    hidden_size: int = 0


@pytest.mark.parametrize("start", [0, 1, 2, 3, 9])
def test_prompt_logprobs_come_once_and_the_first_token_has_none(tokenizer: Tokenizer, start: int) -> None:
    prompt = [5, 6, 7]
    known = {1: Top(-1.0, [8], [-0.5]), 2: Top(-2.0, [9], [-0.25])}
    begin = max(1, start)
    told = [known[position] for position in range(begin, 3)]
    sampling = SamplingParams(prompt_logprobs=1, prompt_logprobs_start=start)
    stage = OutputStage(tokenizer, sampling, prompt=prompt)
    extras = [FakeExtras(begin, told)] if told else None
    first = stage.feed(FakeChunk([40, 41], extras=extras))
    second = stage.feed(FakeChunk([42], "length"))
    whole = [
        PromptLogprob(5, None),
        PromptLogprob(6, -1.0, ((8, -0.5),)),
        PromptLogprob(7, -2.0, ((9, -0.25),)),
    ]
    assert first.prompt_logprobs == whole[start:]
    assert second.prompt_logprobs is None
    assert OutputStage(tokenizer, SamplingParams(), prompt=prompt).feed(FakeChunk([40])).prompt_logprobs is None


def test_hidden_states_of_a_slow_reader_are_joined(tokenizer: Tokenizer) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    stage = OutputStage(tokenizer, SamplingParams(hidden_states="all"))
    extras = [
        FakeExtras(hidden=rows[:3].tobytes(), hidden_size=3),
        FakeExtras(hidden=rows[3:].tobytes(), hidden_size=3),
    ]
    delta = stage.feed(FakeChunk([40, 41], extras=extras))
    assert delta.hidden is not None
    np.testing.assert_array_equal(delta.hidden, rows)
    assert stage.feed(FakeChunk([42], "length")).hidden is None


@pytest.mark.parametrize(
    ("text", "reasoning", "opened"),
    [
        ("<think>one two</think>three", "one two", False),
        ("one two</think>three", "one two", True),
        ("three", "", False),
    ],
)
def test_reasoning_tokens_are_those_up_to_the_last_that_gave_reasoning(
    tokenizer: Tokenizer, text: str, reasoning: str, opened: bool
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    stage = OutputStage(tokenizer, SamplingParams(), reasoning=ThinkParser().stream(opened))
    answer, _ = collect(stage, chunked(ids, []))
    assert answer.reasoning == reasoning
    marked = 0
    for count in range(1, len(ids) + 1):  # the shortest beginning that holds all of the reasoning
        if reasoning and reasoning in tokenizer.decode(ids[:count], False):
            marked = count
            break
    # The parser holds text back while it may begin a marker, so the last reasoning may come a token later.
    assert marked <= answer.reasoning_tokens <= marked + 2 * bool(reasoning)
    assert answer.reasoning_tokens < len(ids)
