"""Rounds and the table of `make bench-http`; the engines themselves are measured by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.over_http.__main__ import table
from bench.over_http.client import record_of
from bench.over_http.rounds import measure
from core.bench.datasets import Conversation
from core.bench.report import RequestRecord


def records(conversations: Sequence[Conversation], **changes: Any) -> tuple[list[RequestRecord], float]:
    made = [
        RequestRecord(0.0, 0.1, 0.5, len(c.token_ids or ()), c.output_len, error=changes.get("error"))
        for c in conversations
    ]
    return made, 0.5


def test_the_warm_up_does_not_count_and_no_prompt_comes_twice() -> None:
    seen: list[tuple[int, ...]] = []

    def run(conversations: Sequence[Conversation]) -> tuple[list[RequestRecord], float]:
        seen.extend(tuple(c.token_ids or ()) for c in conversations)
        return records(conversations)

    found = measure(run, streams=3, input_len=8, output_len=20, seconds=0.0)
    assert (found["rounds"], found["requests"], found["output_tokens"]) == (1, 3, 60)
    assert found["output_tokens_per_s"] == 120
    assert len(set(seen)) == 6
    measure(run, streams=3, input_len=8, output_len=20, seconds=0.0, turn=1)
    assert len(set(seen)) == 12


def test_a_request_that_failed_spoils_the_measurement() -> None:
    with pytest.raises(RuntimeError, match="3 of 3 requests went wrong: no"):
        measure(lambda asked: records(asked, error="no"), streams=3, input_len=8, output_len=20, seconds=0.0)


def test_the_table_compares_with_the_engine_and_names_what_is_missing() -> None:
    def row(rate: float, first_ms: float, **cpu_s: float) -> dict[str, Any]:
        figures = {"output_tokens_per_s": rate, "output_tokens": 2000, "ttft_ms": {"p50": first_ms}, "cpu_s": cpu_s}
        return figures

    engine = [row(1000, 10, engine=0.8), row(2000, 10, engine=0.8), row(1000, 10, engine=0.8)]
    core = [row(rate, 12.5, server=0.05, engine=0.9, client=0.02) for rate in (900, 1900, 970)]
    text = table({"engine": {"64": engine}, "core": {"64": core}, "vllm": {"error": "no environment"}}, ["64"])
    assert "| engine | 64 | 1000 | 0.0 % (0.0 … 0.0) | 10.00 | +0.00 ms (+0.00 … +0.00) | – | 400 | – |" in text
    assert "| core | 64 | 970 | 5.0 % (3.0 … 10.0) | 12.50 | +2.50 ms (+2.50 … +2.50) | 25 | 450 | 10 |" in text
    assert "not measured: no environment" in text


def pieces(*events: dict[str, Any] | str, cuts: Sequence[int] = (), status: bytes = b"200 OK") -> list[bytes]:
    """A streamed reply as it comes from a connection, cut at some places."""
    raw = b"HTTP/1.1 " + status + b"\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for event in events:
        text = b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n"
        raw += b"%x\r\n" % len(text) + text + b"\r\n"
    raw += b"0\r\n\r\n"
    places = [0, *cuts, len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(places)]


SAID = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}]
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@given(st.sets(st.integers(1, 320), max_size=12))
def test_a_record_does_not_depend_on_how_the_reply_was_cut(cuts: set[int]) -> None:
    got = pieces(*SAID, USAGE, "[DONE]", cuts=sorted(cuts))
    record = record_of(0.5, got, [1.0] * len(got))
    assert (record.first_token_s, record.prompt_tokens, record.output_tokens, record.error) == (1.0, 3, 2, None)


def test_times_are_of_the_pieces_that_end_the_events() -> None:
    whole = pieces(*SAID, USAGE, "[DONE]")[0]
    first, second = whole.index(b"data: ") + 20, whole.index(b'"b"') + 10
    got = [whole[:first], whole[first : first + 30], whole[first + 30 : second], whole[second:]]
    record = record_of(0.0, got, [1.0, 2.0, 3.0, 4.0])
    assert record.first_token_s == 2.0
    assert record.gaps_s == [1.0]
    assert record.end_s == 4.0


@pytest.mark.parametrize(
    "got",
    [pieces(status=b"429 Too Many"), pieces({"error": {"message": "no"}}), [b""], pieces("{broken")],
    ids=["status", "error", "closed", "no JSON"],
)
def test_a_reply_that_is_none_is_an_error(got: list[bytes]) -> None:
    assert record_of(0.0, got, [1.0] * len(got)).error
