"""OpenTelemetry: one span per HTTP request, and below it what the request waited for.

    POST /v1/chat/completions           kind SERVER, child of the client's `traceparent`
      read        the body comes in
      tokenize    checks, chat template, tokenizer: from the last byte of the body to the engine
      queue       from there to the first step                          once per answer
      prefill     to the first token                                    once per answer
      decode      to the last token                                     once per answer
      detokenize  from the engine's end to the last byte of the reply: what is left of text and parsers

All times are known to the front end already; nothing is added to the engine's loop. This module imports OpenTelemetry
where it makes a Tracer and nowhere else: without traces nothing of it is loaded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.interfaces.errors import ConfigError
from core.tracing.record import Generation, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

FROM_ENVIRONMENT = "env"
TRACES_PATH = "/v1/traces"
GRPC_PORT = 4317
SHUTDOWN_TIMEOUT_S = 3.0
_FIELD = "server.otlp_traces_endpoint"
_NOT_INSTALLED = "pip install 'core[otel]', or leave out --otlp-traces-endpoint"


class Tracer:
    """Makes spans. `begin` and `end` once per request, on the event loop; sending is a thread's work.

    exporter: of finished spans, for tests; None sends to the collector of `endpoint`.
    """

    def __init__(
        self, model: str, endpoint: str, service_name: str = "core", exporter: SpanExporter | None = None
    ) -> None:
        """Raises ConfigError if OpenTelemetry is not installed or the endpoint is none that it can send to."""
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"traces need OpenTelemetry, which is not installed: {error}",
                field=_FIELD,
                value=endpoint,
                hint=_NOT_INSTALLED,
            ) from error
        processor = SimpleSpanProcessor(exporter) if exporter else BatchSpanProcessor(_exporter(endpoint))
        self._model = model
        self._extract = propagate.extract
        self._trace = trace
        self._provider: TracerProvider = TracerProvider(resource=_resource(service_name), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("core", version("core"))

    def begin(self, record: RequestRecord, method: str, headers: Mapping[str, str]) -> Span:
        """The span of a request, in the trace that its headers name. headers: names in lower case."""
        span: Span = self._tracer.start_span(
            method,
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=record.start_ns,
            attributes={"http.request.method": method, "core.request_id": record.id},
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        return span

    def end(self, span: Span, record: RequestRecord, route: str, method: str, status: int, end_s: float) -> None:
        """The request is over. route: the template of its path. end_s: `time.monotonic()`."""
        clock = _Clock(record)
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": status})
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            if record.generations:
                span.set_attributes(_totals(record, self._model))
                self._children(clock, span, record, end_s)
        span.end(clock(end_s))

    def _children(self, clock: _Clock, span: Span, record: RequestRecord, end_s: float) -> None:
        first_arrival_s = min(generation.arrival_s for generation in record.generations)
        read_s = min(record.read_s or record.start_s, first_arrival_s)
        self._child(clock, span, "read", record.start_s, read_s)
        self._child(clock, span, "tokenize", read_s, first_arrival_s)
        for index, generation in enumerate(record.generations):
            self._answer(clock, span, index, generation)
        last_s = max(generation.end_s for generation in record.generations)
        self._child(clock, span, "detokenize", last_s, max(last_s, end_s))

    def _answer(self, clock: _Clock, span: Span, index: int, told: Generation) -> None:
        about: dict[str, Any] = {"core.answer": index, "gen_ai.response.finish_reasons": (told.finish_reason,)}
        begun_s = told.end_s if told.queue_s is None else min(told.arrival_s + told.queue_s, told.end_s)
        self._child(clock, span, "queue", told.arrival_s, begun_s, about)
        if told.queue_s is None:
            return
        first_s = told.end_s if told.first_s is None else told.first_s
        tokens = {"gen_ai.usage.input_tokens": told.prompt_tokens, "core.cached_tokens": told.cached_tokens}
        self._child(clock, span, "prefill", begun_s, first_s, about | tokens)
        if told.first_s is not None:
            tokens = {"gen_ai.usage.output_tokens": told.generated_tokens}
            self._child(clock, span, "decode", told.first_s, told.end_s, about | tokens)

    def _child(
        self,
        clock: _Clock,
        parent: Span,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        context = self._trace.set_span_in_context(parent)
        span = self._tracer.start_span(name, context, start_time=clock(start_s), attributes=attributes)
        span.end(clock(end_s))

    def close(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Send what is left, but wait no longer than `timeout_s`: a collector that is away holds nobody up."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(timeout_s)


def _totals(record: RequestRecord, model: str) -> dict[str, Any]:
    """Attributes of a whole request, in OpenTelemetry's names for generative AI where it has some."""
    told = record.generations
    first = [generation.first_s for generation in told if generation.first_s is not None]
    totals = {
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": sum(generation.prompt_tokens for generation in told),
        "gen_ai.usage.output_tokens": sum(generation.generated_tokens for generation in told),
        "gen_ai.response.finish_reasons": tuple(generation.finish_reason for generation in told),
        "core.cached_tokens": sum(generation.cached_tokens for generation in told),
    }
    if first:
        totals["core.time_to_first_token_s"] = min(first) - record.start_s
    names = sorted(record.names)
    if names:
        totals["gen_ai.response.id"] = names[0]
    return totals


def _exporter(endpoint: str) -> SpanExporter:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; traces are sent as http/protobuf only",
            field=_FIELD,
            value=endpoint,
            hint="set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf and the collector's HTTP port (4318)",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            f"traces need the OTLP/HTTP exporter, which is not installed: {error}",
            field=_FIELD,
            value=endpoint,
            hint=_NOT_INSTALLED,
        ) from error
    if endpoint == FROM_ENVIRONMENT:
        return OTLPSpanExporter()
    return OTLPSpanExporter(endpoint=collector_url(endpoint))


def collector_url(endpoint: str) -> str:
    """The whole address of `host:port`, of a URL without a path, or of a whole URL. Raises ConfigError."""
    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _no_collector(endpoint, str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _no_collector(endpoint, "it is no http:// or https:// address")
    if port == GRPC_PORT and parts.path in ("", "/"):
        raise _no_collector(endpoint, f"port {GRPC_PORT} is the collector's gRPC port")
    return url.rstrip("/") + TRACES_PATH if parts.path in ("", "/") else url


def _no_collector(endpoint: str, problem: str) -> ConfigError:
    return ConfigError(
        f"cannot send traces to {endpoint!r}: {problem}",
        field=_FIELD,
        value=endpoint,
        hint="give the collector's OTLP/HTTP address, as http://localhost:4318",
    )


def _resource(service_name: str) -> Any:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    attributes = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service_name}
    return Resource.create({"service.version": version("core"), **attributes})


class _Clock:
    """`time.monotonic()` seconds -> nanoseconds since 1970, both counted from the request's start: a wall clock that
    is set meanwhile, or read a moment later, moves no span out of its parent."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record

    def __call__(self, monotonic_s: float) -> int:
        return self._record.start_ns + round((monotonic_s - self._record.start_s) * 1e9)
