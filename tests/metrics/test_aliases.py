"""Other servers' names: the same values, of the same kind, in their spelling."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.metrics.aliases import ALIASES, PEERS, SGLANG, VLLM, aliases_of
from core.metrics.prometheus import EngineFacts, EngineState, ServerMetrics

ROOT = Path(__file__).resolve().parents[2]


def fed(aliases: str = "none") -> ServerMetrics:
    metrics = ServerMetrics("m", aliases)
    metrics.first_token(0.2, 0.1, 100, 64)
    metrics.tokens([0.01])
    metrics.finished("stop", 1.5, 4, 0.3)
    metrics.finished("abort", 0.5, 0)
    metrics.http_begun()
    metrics.http_begun()
    metrics.http("POST", "/v1/completions", 200, 1.5)
    values = {
        "running_requests": 3, "waiting_requests": 2, "kv_usage_ratio": 0.25, "kv_pages": 10, "kv_pages_free": 4,
        "kv_pages_cached": 1, "preemptions": 6, "process_cpu_seconds": 7.5, "process_resident_bytes": 8,
        "grammar_compile_seconds_total": 0.5, "grammar_cache_hits_total": 9, "grammar_waiting": 1, "log_lines_lost": 2,
        "grammar_compiles_total": 4, "grammar_timeouts_total": 3,
        "cache_hit_ratio": 0.5, "decode_tokens_per_second": 11, "prefill_tokens_per_second": 12, "device_seconds": 13,
    }  # fmt: skip
    facts = EngineFacts({"version": "1", "dtype": "float32"}, {"weights": 2.0}, 3.5, 16, 2048)
    metrics.engine(EngineState(values, True, True, 1, 5, 500, facts))
    return metrics


def samples(metrics: ServerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def types(metrics: ServerMetrics) -> dict[str, str]:
    return {family.name: family.type for family in text_string_to_metric_families(metrics.render().decode())}


def test_what_the_engine_and_the_processes_tell() -> None:
    found = samples(fed())
    model = (("model", "m"),)
    assert found["core_engine_paused", model] == 1
    assert found["core_requests_in_flight", model] == 5
    assert found["core_tokens_in_flight", model] == 500
    assert found["core_http_requests_in_flight", ()] == 1
    assert found["core_info", (("dtype", "float32"), *model, ("version", "1"))] == 1
    assert found["core_startup_seconds", (*model, ("phase", "weights"))] == 2.0
    assert found["core_startup_seconds", (*model, ("phase", "total"))] == 3.5
    states = {state: found["core_kv_tokens", (*model, ("state", state))] for state in ("used", "cached", "free")}
    assert states == {"used": 80, "cached": 16, "free": 64}
    assert found["core_kv_capacity_tokens", model] == 160
    assert found["core_process_cpu_seconds_total", (*model, ("process", "engine"))] == 7.5
    assert found["core_process_cpu_seconds_total", (*model, ("process", "server"))] > 0
    assert found["core_log_lines_lost_total", (*model, ("process", "engine"))] == 2
    assert found["core_request_decode_seconds_sum", model] == pytest.approx(0.3)
    assert found["core_request_time_per_output_token_seconds_sum", model] == pytest.approx(0.1)
    assert found["core_request_prefill_seconds_sum", model] == pytest.approx(0.1)
    # values that core has no table for
    assert found["core_grammar_compile_seconds_total", model] == 0.5
    assert found["core_grammar_cache_hits_total", model] == 9
    assert found["core_grammar_waiting", model] == 1


@pytest.mark.parametrize("setting", list(PEERS))
def test_aliases_are_shown_when_asked_for(setting: str) -> None:
    names = {family.partition(":")[0] for family in types(fed(setting)) if ":" in family}
    assert names == set(PEERS[setting])


def test_every_alias_has_its_sources_values_and_type() -> None:
    own, both = types(fed()), types(fed("both"))
    assert len(ALIASES) == len({alias.exposed for alias in ALIASES})
    for alias in ALIASES:
        assert both[alias.exposed] == own[f"core_{alias.source}"], alias
    found = samples(fed("both"))
    sg, vl = (("model_name", "m"),), (("engine", "0"), ("model_name", "m"))
    assert found["sglang:num_running_reqs", sg] == found["vllm:num_requests_running", vl] == 3
    assert found["sglang:token_usage", sg] == found["vllm:kv_cache_usage_perc", vl] == 0.25
    assert found["sglang:kv_available_tokens", sg] == 64
    assert found["sglang:num_requests_total", sg] == 2
    assert found["sglang:num_aborted_requests_total", sg] == 1
    assert found["vllm:request_success_total", (("engine", "0"), ("finished_reason", "stop"), ("model_name", "m"))] == 1
    assert found["vllm:prefix_cache_hits_total", vl] == 64
    assert found["sglang:time_to_first_token_seconds_bucket", (("le", "0.25"), *sg)] == 1
    assert found["vllm:time_to_first_token_seconds_count", vl] == 1
    http = (("endpoint", "/v1/completions"), ("method", "POST"), ("status_code", "200"))
    assert found["sglang:http_responses_total", http] == 1
    assert found["sglang:http_requests_total", http[:2]] == 1
    assert found["sglang:weight_load_duration_seconds", sg] == 2.0


def test_aliases_without_a_source_are_left_out() -> None:
    metrics = ServerMetrics("m", "both")
    assert "sglang:num_running_reqs" not in types(metrics)
    assert "sglang:num_requests" in types(metrics)


def test_the_table_by_setting() -> None:
    assert aliases_of("none") == ()
    assert {alias.peer for alias in aliases_of("sglang")} == {SGLANG}
    assert {alias.peer for alias in aliases_of("both")} == {SGLANG, VLLM}


def test_the_page_is_generated_from_the_tables() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "metrics-page"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
