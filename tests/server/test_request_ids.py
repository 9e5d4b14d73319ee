"""Every request has an id: in its reply, in its log lines, as a name to abort it by. And what the request log tells."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import httpx
import pytest
from running import Running

from core.engine.client import EngineRequest
from core.server.request_log import CUT_BYTES, MAX_PARAMETERS, AccessLines, RequestLog, masked, parameters
from core.tracing.record import current_request

SECRET = "sk-very-secret"
BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is love? " + SECRET}],
    "temperature": 0.5,
    "seed": 3,
    "user": "someone",
    "cache_salt": "tenant-salt",
}


def chat(server: Running, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    return httpx.post(server.url + "/v1/chat/completions", json=body or BODY, headers=headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nothing", "/health"])
def test_a_clients_id_comes_back_whatever_happens(server: Running, path: str) -> None:
    given = {"x-request-id": "mine-1"}
    assert httpx.post(server.url + path, json=BODY, headers=given).headers["x-request-id"] == "mine-1"
    made = httpx.post(server.url + path, json=BODY, headers={"x-request-id": "not sane"}).headers["x-request-id"]
    assert len(made) == 32


def test_streams_and_refusals_by_key_have_it_too(launch: Any) -> None:
    with launch(api_key="k") as server:
        assert len(chat(server).headers["x-request-id"]) == 32
        reply = chat(server, BODY | {"stream": True}, authorization="Bearer k")
        assert reply.status_code == 200
        assert len(reply.headers["x-request-id"]) == 32


def test_a_failure_of_the_server_is_logged_with_the_id_and_told_without_details(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def explode(request: EngineRequest) -> list[int]:
        seen.append(current_request())
        raise ZeroDivisionError("the inner workings")

    server.engine.script = explode
    caplog.handler.addFilter(lambda record: setattr(record, "request", current_request()) or True)
    reply = chat(server, **{"x-request-id": "unlucky"})
    assert reply.status_code == 500
    assert reply.headers["x-request-id"] == "unlucky"
    assert reply.json()["error"]["type"] == "server_error"
    assert "inner" not in reply.text
    assert seen[0] is not None
    assert seen[0].id == "unlucky"
    [record] = [record for record in caplog.records if "failed" in record.getMessage()]
    assert record.exc_info is not None
    assert record.request.id == "unlucky"
    counted = server.ctx.metrics._http
    until_s = time.monotonic() + 10  # a request is counted when its reply is out
    while not counted["POST", "/v1/chat/completions", "500"] and time.monotonic() < until_s:
        time.sleep(0.01)
    assert counted["POST", "/v1/chat/completions", "500"] == 1


def test_a_failure_has_the_shape_of_its_protocol(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.script = lambda request: [1 // 0]
    body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
    told = httpx.post(server.url + "/v1/messages", json=body)
    assert (told.status_code, told.json()["type"]) == (500, "error")
    assert told.json()["error"]["type"] == "api_error"


def test_the_id_of_a_reply_names_its_request(server: Running) -> None:
    seen = []
    inner = server.engine.script
    server.engine.script = lambda request: seen.append(current_request()) or inner(request)
    told = chat(server).json()["id"]
    assert seen[0].known_as(told)
    reply = httpx.post(server.url + "/v1/completions", json={"model": "tiny", "prompt": "x"}).json()
    assert seen[1].known_as(reply["id"])
    httpx.post(server.url + "/generate", json={"text": "x", "rid": "given"})
    assert seen[2].known_as("given")


def fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Of the lines of the request log; waits for the last, which comes after the reply."""
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s:
        found = [record for record in caplog.records if record.name == "core.requests"]
        if found and found[-1].getMessage() == "request finished":
            return [{"message": record.getMessage(), **record.fields} for record in found]
        time.sleep(0.01)
    raise TimeoutError("no line")


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels_tell_more_and_more(launch: Any, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with launch(api_key=SECRET, log_requests=True, log_requests_level=level) as server:
        long = {**BODY, "messages": [{"role": "user", "content": "hi"}], "user": "x" * 3000 + "END " + SECRET}
        del long["cache_salt"]
        assert chat(server, long, authorization=f"Bearer {SECRET}").status_code == 200
        came, done = fields(caplog)
    assert SECRET not in repr([came, done])
    assert (came["message"], came["method"], came["path"], came["client"]) == (
        "request received", "POST", "/v1/chat/completions", "127.0.0.1",
    )  # fmt: skip
    assert (done["status"], done["tenant"]) == (200, "default")
    assert done["seconds"] > 0
    wanted = {"model": "tiny", "temperature": 0.5, "seed": 3}
    assert came.get("parameters") == (wanted if level else None)
    if level < 2:
        assert "xxx" not in repr([came, done])
        assert "Hello" not in repr(done)
    else:
        assert "Hello, world" in done["reply"]
        assert ("END ***" in came["body"]) is (level == 3)
        assert (len(came["body"]) > CUT_BYTES + 100) is (level == 3)


def test_streams_are_logged_and_probes_are_not(launch: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with launch(log_requests=True, log_requests_level=3) as server:
        for path in ("/health", "/ready", "/metrics"):
            httpx.get(server.url + path)
        chat(server, BODY | {"stream": True})
        came, done = fields(caplog)
    assert "data: [DONE]" in done["reply"]
    assert json.loads(came["body"])["cache_salt"] == "***"


def test_off_by_default(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chat(server)
    assert not [record for record in caplog.records if record.name == "core.requests"]


def test_what_is_no_json_is_not_shown(launch: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with launch(log_requests=True, log_requests_level=3) as server:
        httpx.post(server.url + "/generate", content=b"{password: oops")
        came, done = fields(caplog)
    assert came["body"] == "no JSON"
    assert done["status"] == 400


def test_what_sounds_like_a_secret_is_masked_at_any_depth() -> None:
    body = {
        "api_key": "a", "apiKey": "b", "Authorization": "c", "token": "d", "password": "e", "cache_salt": "f",
        "tools": [{"server": {"access_token": "g", "headers": {"cookie": "h"}, "private_key_id": "i"}}],
        "max_tokens": 5, "stop_token_ids": [1], "prompt_token_ids": [2], "logit_bias": {"key": 1},
    }  # fmt: skip
    shown = masked(body)
    assert not set("abcdefghi") & {value for value in json.dumps(shown).split('"') if len(value) == 1}
    assert (shown["max_tokens"], shown["stop_token_ids"], shown["prompt_token_ids"]) == (5, [1], [2])
    assert parameters(body) == {"max_tokens": 5}
    assert parameters([1]) == {}


def test_secrets_of_the_server_are_hidden_wherever_they_are() -> None:
    log = RequestLog(True, 3, secrets=lambda: ("one", "two"))
    assert log.hidden("a one b two c") == "a *** b *** c"


def test_access_lines_of_the_library_below_have_no_query_and_no_secret() -> None:
    """uvicorn writes them at level debug."""
    record = logging.LogRecord(
        "uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:5", "GET", "/v1/models/one?api_key=elsewhere", "1.1", 200), None,
    )  # fmt: skip
    assert AccessLines(lambda: ("one",)).filter(record)
    assert record.getMessage() == '127.0.0.1:5 - "GET /v1/models/*** HTTP/1.1" 200'


def test_parameters_of_a_body_made_to_fill_the_log() -> None:
    assert len(parameters({f"name_{number}": number for number in range(100_000)})) == MAX_PARAMETERS
