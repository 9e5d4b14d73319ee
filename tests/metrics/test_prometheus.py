"""The text that a Prometheus server scrapes, parsed back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from core.metrics.histogram import LONG_S, SHORT_S, TOKENS, BulkHistogram
from core.metrics.names import ENGINE_COUNTERS, ENGINE_GAUGES
from core.metrics.prometheus import EngineState, ServerMetrics
from core.metrics.step_record import StepLog


def samples(metrics: ServerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


MODEL = (("model", "m"),)


def test_requests_and_http_are_counted() -> None:
    metrics = ServerMetrics("m")
    metrics.first_token(0.2, 0.1, 100, 64)
    metrics.tokens([0.01, 0.02])
    metrics.tokens([0.03])
    metrics.finished("stop", 1.5, 4)
    metrics.finished("abort", 0.5, 0)
    metrics.http_begun()
    metrics.http("POST", "/v1/completions", 200, 1.5)
    values = {"steps": 7, "kv_usage_ratio": 0.25, "running_requests": 3}
    metrics.engine(EngineState(values, ready=True, num_restarts=2))
    found = samples(metrics)
    assert found["core_time_to_first_token_seconds_count", MODEL] == 1
    assert found["core_request_queue_seconds_sum", MODEL] == pytest.approx(0.1)
    assert found["core_inter_token_latency_seconds_count", MODEL] == 3
    assert found["core_inter_token_latency_seconds_sum", MODEL] == pytest.approx(0.06)
    assert found["core_inter_token_latency_seconds_bucket", (("le", "0.02"), *MODEL)] == 2
    assert found["core_e2e_request_latency_seconds_count", MODEL] == 2
    assert found["core_prompt_tokens_total", MODEL] == 100
    assert found["core_generation_tokens_total", MODEL] == 4
    assert found["core_cached_tokens_total", MODEL] == 64
    assert found["core_requests_total", (("finish_reason", "stop"), *MODEL)] == 1
    assert found["core_requests_total", (("finish_reason", "abort"), *MODEL)] == 1
    assert found["core_steps_total", MODEL] == 7
    assert found["core_kv_usage_ratio", MODEL] == 0.25
    assert found["core_running_requests", MODEL] == 3
    assert found["core_engine_ready", MODEL] == 1
    assert found["core_engine_restarts_total", MODEL] == 2
    http = (("method", "POST"), ("route", "/v1/completions"), ("status", "200"))
    assert found["core_http_requests_total", http] == 1
    assert found["core_http_request_seconds_count", (("route", "/v1/completions"),)] == 1


def test_two_servers_share_nothing() -> None:
    one, other = ServerMetrics("m"), ServerMetrics("m")
    one.finished("stop", 1.0, 1)
    key = ("core_requests_total", (("finish_reason", "stop"), *MODEL))
    assert (samples(one)[key], samples(other)[key]) == (1, 0)


def test_every_engine_value_has_a_description() -> None:
    assert StepLog(0.0, 0.0).values(1.0).keys() == ENGINE_COUNTERS.keys() | ENGINE_GAUGES.keys()


@given(st.lists(st.lists(st.floats(0, 10), max_size=20), max_size=5))
def test_bulk_histogram_counts_like_one_by_one(batches: list[list[float]]) -> None:
    bounds = (0.5, 1.0, 5.0)
    histogram = BulkHistogram(bounds)
    for batch in batches:
        histogram.observe(batch)
    values = [value for batch in batches for value in batch]
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    want = [sum(value <= bound for value in values) for bound in bounds] + [len(values)]
    assert [count for _, count in histogram.buckets()] == want


@given(st.lists(st.one_of(st.floats(0, 1e6), st.integers(0, 300_000), st.sampled_from([*LONG_S, *SHORT_S, *TOKENS]))))
def test_bulk_histogram_has_the_buckets_of_a_vectorised_one(values: list[float]) -> None:
    for bounds in (SHORT_S, LONG_S, TOKENS):
        histogram = BulkHistogram(bounds)
        histogram.observe(values)
        found = np.bincount(np.searchsorted(np.array(bounds), values, side="left"), minlength=len(bounds) + 1)
        assert [count for _, count in histogram.buckets()] == np.cumsum(found).tolist()
        assert [label for label, _ in histogram.buckets()] == [f"{bound:g}" for bound in bounds] + ["+Inf"]
        assert histogram.sum == pytest.approx(sum(values))
