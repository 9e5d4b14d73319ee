"""A real server under load: scraped, traced, paused, profiled, aborted, drained, and with nowhere to log to."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.metrics.aliases import ALIASES
from tests.e2e.process import ServerProcess, wait_until

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--served-model-name", "tiny", "--cpu-threads", "1", "--page-size", "4")
LONG: dict[str, Any] = {
    "model": "tiny", "prompt": "Hello", "max_tokens": 900, "temperature": 0, "ignore_eos": True, "stream": True,
}  # fmt: skip
USER, ADMIN = {"authorization": "Bearer user"}, {"authorization": "Bearer admin"}


class Client:
    """A stream that is read by a thread. Use as a context manager, which waits for its end."""

    def __init__(self, server: ServerProcess, name: str, headers: dict[str, str], **fields: Any) -> None:
        self.lines: list[str] = []
        self._request = (server.url + "/v1/completions", LONG | fields, {"x-request-id": name, **headers})
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        url, body, headers = self._request
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)

    def __enter__(self) -> Client:
        self._thread.start()
        wait_until(lambda: len(self.lines) > 3, what="tokens")
        return self

    def __exit__(self, *args: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.lines if line.startswith("data: {")]

    @property
    def finish(self) -> str | None:
        """The last event's reason, or the code of its error."""
        last = self.events[-1]
        return last["error"]["code"] if "error" in last else last["choices"][0]["finish_reason"]


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP/HTTP receiver."""
    came: list[bytes] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{receiver.server_address[1]}", came
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join(5)


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list[bytes]]]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def operated(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, spans: tuple[str, list[bytes]], traces: Path
) -> Iterator[ServerProcess]:
    flags = (
        "--api-key", "user", "--admin-api-key", "admin", "--log-format", "json", "--log-requests",
        "--metrics-aliases", "both", "--profile-dir", str(traces), "--otlp-traces-endpoint", spans[0],
    )  # fmt: skip
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CORE_", "OTEL_"))}
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServerProcess(checkpoint, log, *FLAGS, *flags, environment=inherited | environment) as running:
        yield running


def admin(server: ServerProcess, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    reply = httpx.post(server.url + path, json=body, headers=ADMIN, timeout=60)
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made


def exposed(server: ServerProcess) -> set[str]:
    text = httpx.get(server.url + "/metrics", timeout=5).text
    return {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def dashboard() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "core.json").read_text())
    return made


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


@pytest.mark.slow
def test_the_dashboard_and_the_aliases_show_what_a_server_under_load_exposes(operated: ServerProcess) -> None:
    with Client(operated, "a", USER, n=16), Client(operated, "b", USER, n=16):  # one answer takes half a second
        assert operated.metric("core_http_requests_in_flight") >= 2
        wait_until(lambda: operated.metric("core_running_requests") >= 3, what="running requests")
        assert operated.metric("core_tokens_in_flight") > 3
        names = exposed(operated)
        wanted = {name for text in expressions() for name in re.findall(r"\bcore_\w+", text)}
        assert len(wanted) > 25
        assert wanted <= names
        for alias in ALIASES:
            assert {alias.exposed, f"{alias.exposed}_total", f"{alias.exposed}_count"} & names, alias
    for label in ("server", "engine"):
        assert operated.metric("core_process_cpu_seconds_total", f'process="{label}"') > 0
        assert operated.metric("core_process_resident_bytes", f'process="{label}"') > 1 << 20
    assert operated.metric("core_startup_seconds", 'phase="weights"') > 0
    assert operated.metric("core_info", 'quantization="none"') == 1
    assert operated.metric("core_request_decode_seconds_count") >= 3


@pytest.mark.slow
def test_a_pause_in_place_stops_tokens_until_it_ends(operated: ServerProcess) -> None:
    with Client(operated, "paused", USER) as client:
        paused = admin(operated, "/pause_generation", {"mode": "in_place"})
        assert (paused["num_aborted"], paused["num_requests"]) == (0, 1)
        ready = httpx.get(operated.url + "/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "paused")
        assert operated.status("/health") == 200
        waiting = threading.Thread(
            target=lambda: replies.append(
                httpx.post(
                    operated.url + "/v1/completions", json=LONG | {"stream": False, "max_tokens": 2}, headers=USER,
                    timeout=60,
                )
            )
        )  # fmt: skip
        replies: list[httpx.Response] = []
        waiting.start()
        wait_until(lambda: operated.metric("core_waiting_requests") == 1, what="a waiting request")
        steps, num_lines = operated.metric("core_steps_total"), len(client.lines)
        assert not replies
        assert httpx.post(operated.url + "/continue_generation", headers=USER).status_code == 401
        admin(operated, "/continue_generation")
        waiting.join(30)
        assert replies[0].status_code == 200
        assert operated.status("/ready") == 200
        wait_until(lambda: operated.metric("core_steps_total") > steps, what="steps")
    assert client.finish == "length"
    assert len(client.lines) > num_lines


@pytest.mark.slow
def test_requests_are_aborted_by_their_id_or_by_their_replys(operated: ServerProcess) -> None:
    with Client(operated, "first", USER) as first, Client(operated, "second", USER) as second:
        assert admin(operated, "/abort_request", {"rid": "nobody"})["num_aborted"] == 0
        assert admin(operated, "/abort_request", {"rid": "first"})["num_aborted"] == 1
        assert admin(operated, "/abort_request", {"rid": second.events[0]["id"]})["num_aborted"] == 1
    assert (first.finish, second.finish) == ("abort", "abort")
    assert first.lines[-1] == "data: [DONE]"
    wait_until(lambda: operated.metric("core_running_requests") == 0, what="idle")
    assert operated.metric("core_requests_total", 'finish_reason="abort"') >= 2


@pytest.mark.slow
def test_a_profile_of_the_engines_steps(operated: ServerProcess, traces: Path) -> None:
    started = admin(operated, "/start_profile", {"output_dir": "one", "num_steps": 4})
    reply = httpx.post(
        operated.url + "/v1/completions", json=LONG | {"stream": False, "max_tokens": 20}, headers=USER, timeout=60
    )
    assert reply.status_code == 200
    done = admin(operated, "/stop_profile")
    assert (done["path"], done["num_steps"]) == (started["path"], 4)
    assert Path(done["path"]).parent == traces / "one"
    names = {str(event.get("name")) for event in json.loads(Path(done["path"]).read_text())["traceEvents"]}
    assert len([name for name in names if name.startswith("aten::")]) > 10  # the model's work, on whatever thread


@pytest.mark.slow
def test_logs_are_json_with_the_requests_ids_and_the_level_changes(operated: ServerProcess) -> None:
    body = LONG | {"stream": False, "max_tokens": 2, "user": "user"}
    httpx.post(operated.url + "/v1/completions", json=body, headers={"x-request-id": "logged-1", **USER}, timeout=60)

    def told() -> list[dict[str, Any]]:
        # All of standard error is JSON; what is for people on a terminal goes to standard output.
        lines = [line for line in operated.text().splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line.get("request_id") == "logged-1"]

    wait_until(lambda: len(told()) >= 2, what="two lines")
    came, done = told()
    assert (came["message"], done["message"]) == ("request received", "request finished")
    assert (done["status"], done["generated_tokens"], done["finish_reasons"]) == (200, 2, ["length"])
    assert len(done["trace_id"]) == 32
    assert "Bearer" not in operated.text()
    lines = [json.loads(line) for line in operated.text().splitlines() if line.startswith("{")]
    assert {line["process"] for line in lines} == {"server", "engine"}
    assert admin(operated, "/configure_logging", {"log_level": "error", "log_requests": False})["log_level"] == "error"
    httpx.post(operated.url + "/v1/completions", json=body, headers={"x-request-id": "quiet", **USER}, timeout=60)
    assert "quiet" not in operated.text()


@pytest.mark.slow
def test_spans_reach_the_collector_under_the_clients_trace(
    operated: ServerProcess, spans: tuple[str, list[bytes]]
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", **USER}
    body = LONG | {"stream": False, "max_tokens": 5}
    httpx.post(operated.url + "/v1/completions", json=body, headers=headers, timeout=60)

    def mine() -> dict[str, Any]:
        found = {}
        for raw in list(spans[1]):
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                for scope in resource.scope_spans:
                    found |= {span.name: span for span in scope.spans if span.trace_id.hex() == trace}
        return found

    wait_until(lambda: "POST /v1/completions" in mine(), what="spans")
    found = mine()
    root = found.pop("POST /v1/completions")
    assert set(found) == {"read", "tokenize", "queue", "prefill", "decode", "detokenize"}
    attributes = {one.key: one.value for one in root.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == 5
    assert root.parent_span_id.hex() == "00f067aa0ba902b7"
    for span in found.values():
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert found["queue"].end_time_unix_nano <= found["decode"].start_time_unix_nano


class Unlogged(ServerProcess):
    """Its log is /dev/full, which cannot be read either."""

    def text(self) -> str:
        return "(nothing could be written)"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_for_logs_and_a_drain_under_load(checkpoint: Path) -> None:
    flags = ("--log-requests", "--log-requests-level", "3", "--log-level", "debug")
    server = Unlogged(checkpoint, Path("/dev/full"), *FLAGS, *flags)
    try:
        server.wait_ready()
        children = server.children()
        with Client(server, "a", {}) as one, Client(server, "b", {}, n=2) as two, Client(server, "c", {}) as three:
            assert server.metric("core_log_lines_lost_total", 'process="server"') > 0
            wait_until(
                lambda: server.metric("core_log_lines_lost_total", 'process="engine"') > 0, what="engine's losses"
            )
            # A pause holds requests; the end of the server ends the pause, so that they end as they should.
            paused = httpx.post(server.url + "/pause_generation", json={"mode": "in_place"}).json()
            assert paused["num_requests"] == 4
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_exit(60) == 0
        for client in (one, two, three):
            assert client.finish == "length"
            assert client.lines[-1] == "data: [DONE]"
        assert not [child for child in children if child.is_running()]
    finally:
        server.stop()


def test_the_dashboard_is_one() -> None:
    made = dashboard()
    ids = [panel["id"] for panel in made["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all("$model" in text or "http" in text or "tenant" in text for text in expressions())
