"""The server's own metrics, and the engine's latest values next to them."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from core.frontend.output import OutputDelta
from core.frontend.pump import Answers

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class EngineValues(Collector):
    """The engine's values as gauges `core_engine_NAME`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def collect(self) -> Iterable[Metric]:
        for name, value in sorted(self.values.items()):
            clean = re.sub(r"[^a-zA-Z0-9_]", "_", name)
            yield GaugeMetricFamily(f"core_engine_{clean}", f"{name}, as the engine reports it", value=value)


class ServerMetrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        to = self.registry
        self.requests = Counter(
            "core_http_requests", "HTTP requests by route and status", ["route", "status"], registry=to
        )
        self.running = Gauge("core_http_running_requests", "Generation requests being answered", registry=to)
        self.prompt_tokens = Counter("core_prompt_tokens", "Prompt tokens", registry=to)
        self.cached_tokens = Counter(
            "core_cached_prompt_tokens", "Prompt tokens found in the prefix cache", registry=to
        )
        self.generated_tokens = Counter("core_generated_tokens", "Generated tokens", registry=to)
        self.first_token = Histogram(
            "core_time_to_first_token_seconds", "From request to first token", buckets=_SECONDS, registry=to
        )
        self.between_tokens = Histogram(
            "core_inter_token_latency_seconds", "Between tokens of one answer", buckets=(0.001, *_SECONDS), registry=to
        )
        self.whole = Histogram("core_request_seconds", "From request to last token", buckets=_SECONDS, registry=to)
        self.engine = EngineValues()
        self.registry.register(self.engine)

    async def watched(self, answers: Answers) -> AsyncGenerator[tuple[int, OutputDelta]]:
        """`answers.deltas()`, measured."""
        start = time.perf_counter()
        last: dict[int, float] = {}
        source = answers.deltas()
        self.running.inc()
        try:
            async for index, delta in source:
                now = time.perf_counter()
                if delta.token_ids:
                    if index not in last:
                        self.first_token.observe(now - start)
                    else:
                        self.between_tokens.observe((now - last[index]) / len(delta.token_ids))
                    last[index] = now
                yield index, delta
        finally:
            await source.aclose()
            self.running.dec()
            self.whole.observe(time.perf_counter() - start)
            self.prompt_tokens.inc(answers.usage.prompt_tokens)
            self.cached_tokens.inc(answers.usage.cached_tokens)
            self.generated_tokens.inc(answers.usage.completion_tokens)
