from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.bench.report import RequestRecord, percentile, render, summarise


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], share: float) -> None:
    assert math.isclose(percentile(values, share), float(np.percentile(values, share * 100)), abs_tol=1e-6)


def test_summary_counts_only_what_succeeded() -> None:
    good = RequestRecord(0.0, 0.5, 2.5, prompt_tokens=10, output_tokens=5, cached_tokens=4, gaps_s=[0.5] * 4)
    bad = RequestRecord(0.0, error="HTTP 500: no")
    summary = summarise([good, bad], wall_s=2.5)
    assert summary["requests"] == 2
    assert summary["failed"] == 1
    assert summary["output_tokens_per_s"] == 2.0
    assert summary["cache_hit_rate"] == 0.4
    assert summary["ttft_ms"]["p50"] == 500.0
    assert summary["tpot_ms"]["mean"] == 500.0
    assert summary["first_error"] == "HTTP 500: no"
    assert json.loads(render(summary, as_json=True)) == summary
    assert "ttft_ms" in render(summary, as_json=False)


def test_nothing_succeeded_is_reported_not_raised() -> None:
    summary = summarise([RequestRecord(0.0, error="refused")], wall_s=1.0)
    assert summary["failed"] == 1
    assert summary["ttft_ms"]["p50"] is None
    assert "refused" in render(summary, as_json=False)
