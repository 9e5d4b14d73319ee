"""The metrics' names in other servers, so that dashboards and alerts made for those go on. Data: what /metrics adds and
what docs/metrics.md says are made of this table.

An alias has the same values, the same type and the same buckets as its source; labels are spelled as in that server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Sample

if TYPE_CHECKING:
    from prometheus_client import Metric

SGLANG, VLLM = "sglang", "vllm"
PEERS: Mapping[str, tuple[str, ...]] = {"none": (), SGLANG: (SGLANG,), VLLM: (VLLM,), "both": (SGLANG, VLLM)}
# Labels as that server spells them, and labels that its dashboards filter by.
_SPELLED = {
    SGLANG: {"model": "model_name", "route": "endpoint", "status": "status_code"},
    VLLM: {"model": "model_name", "finish_reason": "finished_reason", "route": "handler"},
}
_ADDED: Mapping[str, Mapping[str, str]] = {SGLANG: {}, VLLM: {"engine": "0"}}


@dataclass(frozen=True, slots=True)
class Alias:
    """peer: whose name it is. name, source: families, without prefix and without `_total`. where: only samples with
    these label values, which are left out then. without: labels over which samples are added up."""

    peer: str
    name: str
    source: str
    where: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """The family's whole name."""
        return f"{self.peer}:{self.name}"


def _phase(name: str) -> Mapping[str, str]:
    return {"phase": name}


ALIASES: tuple[Alias, ...] = (
    # Requests
    Alias(SGLANG, "prompt_tokens", "prompt_tokens"),
    Alias(SGLANG, "generation_tokens", "generation_tokens"),
    Alias(SGLANG, "cached_tokens", "cached_tokens"),
    Alias(SGLANG, "num_requests", "requests", without=("finish_reason",)),
    Alias(SGLANG, "num_aborted_requests", "requests", where={"finish_reason": "abort"}),
    Alias(SGLANG, "time_to_first_token_seconds", "time_to_first_token_seconds"),
    Alias(SGLANG, "inter_token_latency_seconds", "inter_token_latency_seconds"),
    Alias(SGLANG, "request_time_per_output_token_seconds", "request_time_per_output_token_seconds"),
    Alias(SGLANG, "e2e_request_latency_seconds", "e2e_request_latency_seconds"),
    Alias(SGLANG, "queue_time_seconds", "request_queue_seconds"),
    Alias(SGLANG, "prompt_tokens_histogram", "request_prompt_tokens"),
    Alias(SGLANG, "generation_tokens_histogram", "request_generation_tokens"),
    Alias(VLLM, "prompt_tokens", "prompt_tokens"),
    Alias(VLLM, "generation_tokens", "generation_tokens"),
    Alias(VLLM, "prefix_cache_queries", "prompt_tokens"),
    Alias(VLLM, "prefix_cache_hits", "cached_tokens"),
    Alias(VLLM, "request_success", "requests"),
    Alias(VLLM, "time_to_first_token_seconds", "time_to_first_token_seconds"),
    Alias(VLLM, "inter_token_latency_seconds", "inter_token_latency_seconds"),
    Alias(VLLM, "time_per_output_token_seconds", "inter_token_latency_seconds"),
    Alias(VLLM, "request_time_per_output_token_seconds", "request_time_per_output_token_seconds"),
    Alias(VLLM, "e2e_request_latency_seconds", "e2e_request_latency_seconds"),
    Alias(VLLM, "request_queue_time_seconds", "request_queue_seconds"),
    Alias(VLLM, "request_prefill_time_seconds", "request_prefill_seconds"),
    Alias(VLLM, "request_decode_time_seconds", "request_decode_seconds"),
    Alias(VLLM, "request_prompt_tokens", "request_prompt_tokens"),
    Alias(VLLM, "request_generation_tokens", "request_generation_tokens"),
    # Scheduler
    Alias(SGLANG, "num_running_reqs", "running_requests"),
    Alias(SGLANG, "num_queue_reqs", "waiting_requests"),
    Alias(SGLANG, "num_retracted_requests", "preemptions"),
    Alias(SGLANG, "token_usage", "kv_usage_ratio"),
    Alias(SGLANG, "num_used_tokens", "kv_tokens", where={"state": "used"}),
    Alias(SGLANG, "kv_used_tokens", "kv_tokens", where={"state": "used"}),
    Alias(SGLANG, "kv_evictable_tokens", "kv_tokens", where={"state": "cached"}),
    Alias(SGLANG, "kv_available_tokens", "kv_tokens", where={"state": "free"}),
    Alias(SGLANG, "cache_hit_rate", "cache_hit_ratio"),
    Alias(SGLANG, "gen_throughput", "decode_tokens_per_second"),
    Alias(SGLANG, "forward_execution_seconds", "device_seconds"),
    Alias(VLLM, "num_requests_running", "running_requests"),
    Alias(VLLM, "num_requests_waiting", "waiting_requests"),
    Alias(VLLM, "num_preemptions", "preemptions"),
    Alias(VLLM, "kv_cache_usage_perc", "kv_usage_ratio"),
    Alias(VLLM, "gpu_cache_usage_perc", "kv_usage_ratio"),
    Alias(VLLM, "avg_prompt_throughput_toks_per_s", "prefill_tokens_per_second"),
    Alias(VLLM, "avg_generation_throughput_toks_per_s", "decode_tokens_per_second"),
    # Grammars
    Alias(SGLANG, "num_grammar_queue_reqs", "grammar_waiting"),
    Alias(SGLANG, "num_grammar", "grammar_compiles"),
    Alias(SGLANG, "num_grammar_cache_hit", "grammar_cache_hits"),
    Alias(SGLANG, "num_grammar_timeout", "grammar_timeouts"),
    # Capacity and start
    Alias(SGLANG, "max_total_num_tokens", "kv_capacity_tokens"),
    Alias(SGLANG, "page_size", "kv_page_tokens"),
    Alias(SGLANG, "num_pages", "kv_pages"),
    Alias(SGLANG, "context_len", "context_tokens"),
    Alias(SGLANG, "startup_time_seconds", "startup_seconds", where=_phase("total")),
    Alias(SGLANG, "weight_load_duration_seconds", "startup_seconds", where=_phase("weights")),
    # HTTP and processes
    Alias(SGLANG, "http_requests_active", "http_requests_in_flight"),
    Alias(SGLANG, "http_requests", "http_requests", without=("status",)),
    Alias(SGLANG, "http_responses", "http_requests"),
    Alias(SGLANG, "process_cpu_seconds", "process_cpu_seconds", where={"process": "server"}),
    Alias(SGLANG, "scheduler_process_cpu_seconds", "process_cpu_seconds", where={"process": "engine"}),
)


def aliases_of(setting: str) -> tuple[Alias, ...]:
    """The table's part for a value of `server.metrics_aliases`."""
    return tuple(alias for alias in ALIASES if alias.peer in PEERS[setting])


def add_aliases(families: Iterable[Metric], aliases: Iterable[Alias], prefix: str) -> Iterator[Metric]:
    """`families`, whose names begin with `prefix`, then their aliases; those without a source are left out."""
    by_name: dict[str, Metric] = {}
    for family in families:
        by_name[family.name.removeprefix(prefix)] = family
        yield family
    for alias in aliases:
        source = by_name.get(alias.source)
        if source is not None:
            yield _renamed(source, alias)


_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


def _renamed(source: Metric, alias: Alias) -> Metric:
    family: Metric = _FAMILIES[source.type](alias.exposed, source.documentation)
    spelled, added = _SPELLED[alias.peer], _ADDED[alias.peer]
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in source.samples:
        if any(sample.labels.get(label) != value for label, value in alias.where.items()):
            continue
        left_out = (*alias.where, *alias.without)
        labels = {spelled.get(label, label): value for label, value in sample.labels.items() if label not in left_out}
        suffix = sample.name.removeprefix(source.name)
        key = (suffix, tuple((labels | dict(added)).items()))
        sums[key] = sums.get(key, 0.0) + sample.value
    family.samples = [Sample(alias.exposed + suffix, dict(labels), value) for (suffix, labels), value in sums.items()]
    return family
