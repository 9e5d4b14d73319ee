"""What `/metrics` shows: engine values as they were sent, and requests as the front end saw them.

One `ServerMetrics` per server with a registry of its own. Names begin with `core_`. It fits
`core.engine.streams.RequestObserver`. Used from the server's event loop only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from core.metrics.aliases import add_aliases, aliases_of
from core.metrics.histogram import LONG_S, SHORT_S, TOKENS, BulkHistogram
from core.metrics.names import ENGINE_COUNTERS, ENGINE_GAUGES, other_values
from core.metrics.process import process_values

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "core_"
FINISH_REASONS = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What does not change while an engine lives. info: labels of core_info. phases: seconds of each phase of its
    start. page_tokens: tokens of a KV page. context_tokens: most tokens of a request."""

    info: Mapping[str, str] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    startup_s: float = 0.0
    page_tokens: int = 0
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine's client knows at the moment of a scrape. values: as the engine sent them."""

    values: Mapping[str, float] = field(default_factory=dict)
    ready: bool = False
    paused: bool = False
    num_restarts: int = 0
    num_requests: int = 0
    num_tokens: int = 0
    facts: EngineFacts | None = None


class ServerMetrics(Collector):
    """All metrics of one server.

    model: value of the label `model`. aliases: whose names are shown too, as the setting `metrics_aliases` says.
    lost_log_lines: how many lines of this process's log came to nothing.
    """

    def __init__(self, model: str, aliases: str = "none") -> None:
        self._model = model
        self._aliases = aliases_of(aliases)
        self._state = EngineState()
        self.lost_log_lines: Callable[[], int] = lambda: 0
        self._prefill = BulkHistogram(LONG_S)
        self._decode = BulkHistogram(LONG_S)
        self._per_token = BulkHistogram(SHORT_S)
        self._ttft = BulkHistogram(LONG_S)
        self._queue = BulkHistogram(LONG_S)
        self._itl = BulkHistogram(SHORT_S)
        self._e2e = BulkHistogram(LONG_S)
        self._prompt = BulkHistogram(TOKENS)
        self._generated = BulkHistogram(TOKENS)
        self._cached_tokens = 0
        self._finished: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self._http_in_flight = 0
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
            self._prefill.observe((max(0.0, ttft_s - queue_s),))
        self._prompt.observe((prompt_tokens,))
        self._cached_tokens += cached_tokens

    def finished(self, reason: str, e2e_s: float, generated_tokens: int, decode_s: float | None = None) -> None:
        """A request ended. reason: one of FINISH_REASONS. decode_s: from its first token to its last, if it has two."""
        self._finished[reason] += 1
        if decode_s is not None:
            self._decode.observe((decode_s,))
            self._per_token.observe((decode_s / (generated_tokens - 1),))
        self._e2e.observe((e2e_s,))
        self._generated.observe((generated_tokens,))

    # Fed by the server

    def http_begun(self) -> None:
        """A request came; `http` is called when its response has ended."""
        self._http_in_flight += 1

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response was sent. route: the template of the path, never the path itself."""
        self._http_in_flight -= 1
        self._http[method, route, str(status)] += 1
        if route not in self._http_seconds:
            self._http_seconds[route] = BulkHistogram(LONG_S)
        self._http_seconds[route].observe((seconds,))

    def engine(self, state: EngineState) -> None:
        """Where the engine stands. Call before `render`."""
        self._state = state

    # Out

    def include(self, collector: Collector) -> None:
        """Show what `collector` collects too."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The text format, of type CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        return add_aliases(self._families(), self._aliases, PREFIX)

    def _families(self) -> Iterator[Metric]:
        yield from self._of_engine(self._state)
        yield from self._of_processes(self._state.values)
        yield from self._of_requests()
        yield from self._of_http()

    def _of_engine(self, state: EngineState) -> Iterator[Metric]:
        values, facts = state.values, state.facts
        yield self._gauge("engine_ready", "Whether the engine accepts requests.", float(state.ready))
        yield self._gauge("engine_paused", "Whether the engine is paused.", float(state.paused))
        yield self._counter("engine_restarts", "Times the engine was restarted after its death.", state.num_restarts)
        yield self._gauge("requests_in_flight", "Engine requests that have not ended.", state.num_requests)
        yield self._gauge("tokens_in_flight", "Tokens of prompts and answers of requests in flight.", state.num_tokens)
        for name, text in ENGINE_COUNTERS.items():
            if name in values:
                yield self._counter(name, text, values[name])
        for name, text in ENGINE_GAUGES.items():
            if name in values:
                yield self._gauge(name, text, values[name])
        for sent, (name, counts) in other_values(dict(values)).items():
            text = f"The engine's value {sent}."
            yield self._counter(name, text, values[sent]) if counts else self._gauge(name, text, values[sent])
        if facts is not None:
            yield from self._of_facts(facts, values)

    def _of_facts(self, facts: EngineFacts, values: Mapping[str, float]) -> Iterator[Metric]:
        info = GaugeMetricFamily(f"{PREFIX}info", "What runs; the value is 1.", labels=["model", *facts.info])
        info.add_metric([self._model, *facts.info.values()], 1.0)
        yield info
        phases = {**facts.phases, "total": facts.startup_s}
        yield self._labelled("startup_seconds", "Seconds of the engine's start, by phase.", "phase", phases)
        yield self._gauge("context_tokens", "Most tokens of a request, with its answer.", facts.context_tokens)
        yield self._gauge("kv_page_tokens", "Tokens of a KV page.", facts.page_tokens)
        if "kv_pages" in values:
            pages, free = values["kv_pages"], values.get("kv_pages_free", 0.0)
            cached = values.get("kv_pages_cached", 0.0)
            states = {"used": pages - free - cached, "cached": cached, "free": free}
            tokens = {state: count * facts.page_tokens for state, count in states.items()}
            yield self._labelled("kv_tokens", "KV memory in tokens, by what it holds.", "state", tokens)
            text = "Tokens that the KV memory has room for."
            yield self._gauge("kv_capacity_tokens", text, pages * facts.page_tokens)

    def _of_processes(self, values: Mapping[str, float]) -> Iterator[Metric]:
        own = {**process_values(), "log_lines_lost": float(self.lost_log_lines())}
        for name, text, family in (
            ("process_cpu_seconds", "Processor seconds of a process.", CounterMetricFamily),
            ("process_resident_bytes", "Memory that a process holds.", GaugeMetricFamily),
            ("log_lines_lost", "Log lines that could not be written.", CounterMetricFamily),
        ):
            told = family(f"{PREFIX}{name}", text, labels=["model", "process"])
            told.add_metric([self._model, "server"], own[name])
            if name in values:
                told.add_metric([self._model, "engine"], values[name])
            yield told

    def _of_requests(self) -> Iterator[Metric]:
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token.", self._ttft),
            ("request_queue_seconds", "From arrival to the first step of a request.", self._queue),
            ("request_prefill_seconds", "From the first step of a request to its first token.", self._prefill),
            ("request_decode_seconds", "From the first token of a request to its last.", self._decode),
            ("inter_token_latency_seconds", "Between two tokens of a request.", self._itl),
            ("request_time_per_output_token_seconds", "Mean time between the tokens of a request.", self._per_token),
            ("e2e_request_latency_seconds", "From arrival to the end of a request.", self._e2e),
            ("request_prompt_tokens", "Tokens of prompts.", self._prompt),
            ("request_generation_tokens", "Tokens generated for a request.", self._generated),
        ):
            yield self._histogram(name, text, {"": histogram}, None)
        yield self._counter("prompt_tokens", "Prompt tokens of requests that began.", self._prompt.sum)
        yield self._counter("generation_tokens", "Tokens generated for finished requests.", self._generated.sum)
        yield self._counter("cached_tokens", "Prompt tokens from the prefix cache, by request.", self._cached_tokens)
        finished = CounterMetricFamily(f"{PREFIX}requests", "Requests that ended.", labels=["model", "finish_reason"])
        for reason, count in self._finished.items():
            finished.add_metric([self._model, reason], count)
        yield finished

    def _of_http(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(f"{PREFIX}http_requests_in_flight", "HTTP requests that are being answered.")
        in_flight.add_metric([], self._http_in_flight)
        yield in_flight
        http = CounterMetricFamily(f"{PREFIX}http_requests", "HTTP responses.", labels=["method", "route", "status"])
        for labels, count in self._http.items():
            http.add_metric(labels, count)
        yield http
        yield self._histogram("http_request_seconds", "Until the response ended.", self._http_seconds, "route")

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["model"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"{PREFIX}{name}", text, labels=["model"])
        family.add_metric([self._model], value)
        return family

    def _labelled(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["model", label])
        for value, number in values.items():
            family.add_metric([self._model, value], number)
        return family

    def _histogram(self, name: str, text: str, by_value: Mapping[str, BulkHistogram], label: str | None) -> Metric:
        family = HistogramMetricFamily(f"{PREFIX}{name}", text, labels=[label or "model"])
        for value, histogram in by_value.items():
            family.add_metric([value if label else self._model], histogram.buckets(), histogram.sum)
        return family
