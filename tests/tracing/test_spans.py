"""Spans: from a record, under the client's trace, to a collector."""

from __future__ import annotations

import http.server
import itertools
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from core.interfaces.errors import ConfigError
from core.tracing.record import Generation, RequestRecord
from core.tracing.spans import Tracer, collector_url

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def finished(record: RequestRecord, status: int = 200, headers: dict[str, str] | None = None) -> list[ReadableSpan]:
    """The spans of a request, in the order in which they ended."""
    exporter = InMemorySpanExporter()
    tracer = Tracer("tiny", "", exporter=exporter)
    span = tracer.begin(record, "POST", headers or {})
    tracer.end(span, record, "/v1/completions", "POST", status, time.monotonic())
    tracer.close()
    return list(exporter.get_finished_spans())


def made(num_answers: int = 1) -> RequestRecord:
    """A request that came a second ago: read at 0.1 s, sent at 0.2, begun at 0.3, first token at 0.5, last at 0.9."""
    start_s = time.monotonic() - 1.0
    record = RequestRecord("req-1", start_s=start_s, read_s=start_s + 0.1, names={"cmpl-1"})
    for _ in range(num_answers):
        told = Generation(
            start_s + 0.2, start_s + 0.9, "stop", 7, 4, 20, queue_s=0.1, first_s=start_s + 0.5, last_s=start_s + 0.9
        )
        record.generations.append(told)
    return record


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_request_and_what_it_waited_for() -> None:
    record = made()
    spans = finished(record, headers=HEADERS)
    root = spans[-1]
    assert root.name == "POST /v1/completions"
    assert root.kind is SpanKind.SERVER
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert record.trace_id == TRACE
    assert root.attributes is not None
    wanted = {
        "core.request_id": "req-1", "gen_ai.response.id": "cmpl-1", "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 20, "core.cached_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop",), "http.request.method": "POST", "http.route": "/v1/completions",
        "http.response.status_code": 200,
    }  # fmt: skip
    assert {name: root.attributes[name] for name in wanted} == wanted
    assert root.attributes["core.time_to_first_token_s"] == pytest.approx(0.5)
    children = spans[:-1]
    assert [span.name for span in children] == ["read", "tokenize", "queue", "prefill", "decode", "detokenize"]
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in children)
    lengths = [seconds(span) for span in children[:5]]
    assert lengths == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.4], abs=1e-5)
    # Without gaps: each begins where the one before ended.
    for one, other in itertools.pairwise(children):
        assert abs((other.start_time or 0) - (one.end_time or 0)) < 10_000  # rounding
    assert seconds(root) >= 1.0


def test_children_lie_in_their_parent_whatever_the_wall_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for offset_ns in (0, -3_600 * 10**9):
        record = made()
        exporter = InMemorySpanExporter()
        tracer = Tracer("tiny", "", exporter=exporter)
        span = tracer.begin(record, "POST", {})
        wall_ns = time.time_ns
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda wall_ns=wall_ns, offset_ns=offset_ns: wall_ns() + offset_ns)
            tracer.end(span, record, "/v1/completions", "POST", 200, time.monotonic())
        tracer.close()
        *children, root = exporter.get_finished_spans()
        edges = [edge or 0 for child in children for edge in (child.start_time, child.end_time)]
        moments = [root.start_time or 0, *edges, root.end_time or 0]
        assert moments == sorted(moments)
        assert edges[1:-1:2] == edges[2::2]  # each begins where the one before ended, to the nanosecond


def test_several_answers_have_their_own() -> None:
    spans = finished(made(2))
    assert [span.name for span in spans].count("decode") == 2
    assert {span.attributes["core.answer"] for span in spans if span.name == "queue" and span.attributes} == {0, 1}
    root = spans[-1].attributes
    assert root is not None
    assert root["gen_ai.usage.output_tokens"] == 40


def test_a_request_that_never_ran_has_a_queue_and_no_more() -> None:
    record = RequestRecord("r")
    record.generations.append(Generation(record.start_s, record.start_s + 0.1, "abort", 7))
    assert [span.name for span in finished(record)] == [
        "read",
        "tokenize",
        "queue",
        "detokenize",
        "POST /v1/completions",
    ]
    assert [span.name for span in finished(RequestRecord("r"))] == ["POST /v1/completions"]


def test_failures_are_errors() -> None:
    assert finished(RequestRecord("r"), 503)[-1].status.status_code is StatusCode.ERROR
    assert finished(RequestRecord("r"), 400)[-1].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("collector:4318", "http://collector:4318/v1/traces"),
        ("https://c/", "https://c/v1/traces"),
        ("https://c/tenant/v1/traces", "https://c/tenant/v1/traces"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert collector_url(given) == url


@pytest.mark.parametrize("given", ["ftp://c", "http://", "localhost:4317", "http://c:nothing", ""])
def test_addresses_that_cannot_be(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        collector_url(given)
    assert caught.value.field == "server.otlp_traces_endpoint"
    assert caught.value.hint


def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="http/protobuf only"):
        Tracer("m", "http://localhost:4318")


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        Tracer("m", "http://localhost:4318")
    assert "core[otel]" in (caught.value.hint or "")


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP/HTTP receiver: its address, and (path, body) of what came."""
    came: list[tuple[str, bytes]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", came
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_real_collector_gets_them(
    collector: tuple[str, list[tuple[str, bytes]]], by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, came = collector
    if by_environment:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    tracer = Tracer("tiny", "env" if by_environment else address, "ours")
    record = made()
    span = tracer.begin(record, "POST", HEADERS)
    tracer.end(span, record, "/generate", "POST", 200, time.monotonic())
    tracer.close()
    [(path, body)] = came
    assert path == "/v1/traces"
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    about = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert about["service.name"] == ("theirs" if by_environment else "ours")
    [scope] = resource.scope_spans
    assert len(scope.spans) == 7
    assert {one.trace_id.hex() for one in scope.spans} == {TRACE}


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    tracer = Tracer("tiny", "http://127.0.0.1:9")
    span = tracer.begin(RequestRecord("r"), "GET", {})
    tracer.end(span, RequestRecord("r"), "/", "GET", 200, time.monotonic())
    ending = threading.Thread(target=tracer.close, args=(0.2,))
    ending.start()
    ending.join(20)
    assert not ending.is_alive()
