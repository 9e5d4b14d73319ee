"""Rounds and the table of `make bench-http`; the engines themselves are measured by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench.http.__main__ import table
from bench.http.rounds import measure
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


def test_a_request_that_failed_spoils_the_measurement() -> None:
    with pytest.raises(RuntimeError, match="3 of 3 requests went wrong: no"):
        measure(lambda asked: records(asked, error="no"), streams=3, input_len=8, output_len=20, seconds=0.0)


def test_the_table_compares_with_the_engine_and_names_what_is_missing() -> None:
    def row(rate: float, first_ms: float) -> dict[str, Any]:
        return {"64": {"output_tokens_per_s": rate, "ttft_ms": {"p50": first_ms}}}

    text = table({"engine": row(1000, 10), "core": row(900, 12.5), "vllm": {"error": "no environment"}}, ["64"])
    assert "| core | 64 | 900 | 10.0% | 12.50 | +2.50 ms |" in text
    assert "not measured: no environment" in text
