"""What `/metrics` shows: engine values as they were sent, and requests as the front end saw them.

One `ServerMetrics` per server with a registry of its own. Names begin with `core_`. It fits
`core.engine.streams.RequestObserver`. Used from the server's event loop only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from core.metrics.histogram import LONG_S, SHORT_S, TOKENS, BulkHistogram

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Names of Stats values (core.metrics.step_record) and their descriptions.
ENGINE_COUNTERS = {
    "steps": "Engine steps that have finished.",
    "failed_steps": "Engine steps that failed.",
    "prefill_tokens": "Prompt tokens computed, those of preempted requests again.",
    "decode_tokens": "Tokens computed one at a time.",
    "cached_prompt_tokens": "Prompt tokens that the prefix cache saved.",
    "preemptions": "Requests put back into the queue for lack of memory.",
    "step_seconds": "Seconds spent in steps.",
    "schedule_seconds": "Seconds spent in the scheduler.",
    "device_seconds": "Seconds that steps took on the device.",
}
ENGINE_GAUGES = {
    "running_requests": "Requests that hold KV memory.",
    "waiting_requests": "Requests in the queue.",
    "kv_pages": "KV pages of a cache group.",
    "kv_pages_free": "KV pages that hold nothing.",
    "kv_pages_cached": "KV pages of cached prefixes that can be evicted.",
    "kv_usage_ratio": "Share of KV pages that requests hold, 0 to 1.",
    "cache_hit_ratio": "Share of prompt tokens served from the prefix cache since the start, 0 to 1.",
    "prefill_tokens_per_second": "Prompt tokens computed in the last second or so.",
    "decode_tokens_per_second": "Tokens generated in the last second or so.",
}


class ServerMetrics(Collector):
    """All metrics of one server. model: value of the label `model`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._engine: Mapping[str, float] = {}
        self._ready = False
        self._restarts = 0
        self._ttft = BulkHistogram(LONG_S)
        self._queue = BulkHistogram(LONG_S)
        self._itl = BulkHistogram(SHORT_S)
        self._e2e = BulkHistogram(LONG_S)
        self._prompt = BulkHistogram(TOKENS)
        self._generated = BulkHistogram(TOKENS)
        self._cached_tokens = 0
        self._finished: Counter[str] = Counter()
        self._http: Counter[tuple[str, str, str]] = Counter()
        self._http_seconds: dict[str, BulkHistogram] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    # Fed by the engine client

    def tokens(self, intervals_s: list[float]) -> None:
        """Seconds since the token before, of every request that got one in a step."""
        self._itl.observe(intervals_s)

    def first_token(self, ttft_s: float, queue_s: float | None, prompt_tokens: int, cached_tokens: int) -> None:
        """A request gave its first token."""
        self._ttft.observe((ttft_s,))
        if queue_s is not None:
            self._queue.observe((queue_s,))
        self._prompt.observe((prompt_tokens,))
        self._cached_tokens += cached_tokens

    def finished(self, reason: str, e2e_s: float, generated_tokens: int) -> None:
        """A request ended. reason: one of FINISH_REASONS."""
        self._finished[reason] += 1
        self._e2e.observe((e2e_s,))
        self._generated.observe((generated_tokens,))

    # Fed by the server

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response was sent. route: the template of the path, never the path itself."""
        self._http[method, route, str(status)] += 1
        if route not in self._http_seconds:
            self._http_seconds[route] = BulkHistogram(LONG_S)
        self._http_seconds[route].observe((seconds,))

    def engine(self, values: Mapping[str, float], ready: bool, num_restarts: int = 0) -> None:
        """Latest values of the engine. Call before `render`."""
        self._engine, self._ready, self._restarts = values, ready, num_restarts

    # Out

    def include(self, collector: Collector) -> None:
        """Show what `collector` collects too."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The text format, of type CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield self._gauge("engine_ready", "Whether the engine accepts requests.", float(self._ready))
        yield self._counter("engine_restarts", "Times the engine was restarted after its death.", self._restarts)
        for name, text in ENGINE_COUNTERS.items():
            if name in self._engine:
                yield self._counter(name, text, self._engine[name])
        for name, text in ENGINE_GAUGES.items():
            if name in self._engine:
                yield self._gauge(name, text, self._engine[name])
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token.", self._ttft),
            ("request_queue_seconds", "From arrival to the first step of a request.", self._queue),
            ("inter_token_latency_seconds", "Between two tokens of a request.", self._itl),
            ("e2e_request_latency_seconds", "From arrival to the end of a request.", self._e2e),
            ("request_prompt_tokens", "Tokens of prompts.", self._prompt),
            ("request_generation_tokens", "Tokens generated for a request.", self._generated),
        ):
            yield self._histogram(name, text, {"": histogram}, None)
        yield self._counter("prompt_tokens", "Prompt tokens of requests that began.", self._prompt.sum)
        yield self._counter("generation_tokens", "Tokens generated for finished requests.", self._generated.sum)
        yield self._counter("cached_tokens", "Prompt tokens from the prefix cache, by request.", self._cached_tokens)
        finished = CounterMetricFamily("core_requests", "Requests that ended.", labels=["model", "finish_reason"])
        for reason, count in self._finished.items():
            finished.add_metric([self._model, reason], count)
        yield finished
        http = CounterMetricFamily("core_http_requests", "HTTP responses.", labels=["method", "route", "status"])
        for labels, count in self._http.items():
            http.add_metric(labels, count)
        yield http
        yield self._histogram("http_request_seconds", "Until the response ended.", self._http_seconds, "route")

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"core_{name}", text, labels=["model"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"core_{name}", text, labels=["model"])
        family.add_metric([self._model], value)
        return family

    def _histogram(self, name: str, text: str, by_value: Mapping[str, BulkHistogram], label: str | None) -> Metric:
        family = HistogramMetricFamily(f"core_{name}", text, labels=[label or "model"])
        for value, histogram in by_value.items():
            family.add_metric([value if label else self._model], histogram.buckets(), histogram.sum)
        return family
