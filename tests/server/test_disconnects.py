"""A client that goes frees what it held, streaming or not; several samples end together."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from running import Running

from core.config.sections import ServerSettings
from core.interfaces.errors import ConfigError
from core.server.main import bind

HI = [{"role": "user", "content": "Hi"}]
ROUTES = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "x", "max_tokens": 200},
    "/generate": {"text": "x", "sampling_params": {"max_new_tokens": 200}},
}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true")


@pytest.fixture
def slow(server: Running) -> Running:
    server.engine.script = lambda request: [10] * 200
    server.engine.delay_s = 0.02
    return server


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("n", [1, 3])
def test_stream(slow: Running, route: str, n: int) -> None:
    body = {**ROUTES[route], "stream": True}
    if route == "/generate":
        body["sampling_params"] = {"max_new_tokens": 200, "n": n}
    else:
        body["n"] = n
    with httpx.stream("POST", slow.url + route, json=body) as reply:
        lines = reply.iter_lines()  # kept: closing it closes the connection
        next(lines)
        assert slow.engine.running == n
    until(lambda: slow.engine.running == 0)
    assert (slow.engine.cancelled, slow.engine.finished) == (n, 0)


@pytest.mark.parametrize("route", ROUTES)
def test_whole_answer(slow: Running, route: str) -> None:
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(slow.url + route, json=ROUTES[route], timeout=0.4)
    until(lambda: slow.engine.running == 0 and slow.engine.cancelled == 1)


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_token(slow: Running, stream: bool) -> None:
    """The request waits in the engine's queue, no header was sent yet."""
    slow.engine.delay_s = 30
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{slow.url}/v1/chat/completions", json={"messages": HI, "stream": stream}, timeout=0.4)
    until(lambda: len(slow.engine.requests) == 1 and slow.engine.running == 0)
    assert slow.engine.cancelled == 1


def test_half_a_body(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.engine.requests == []


def test_one_sample_that_fails_ends_the_others(slow: Running) -> None:
    slow.engine.error_after = 5
    body = {"messages": HI, "stream": True, "n": 3}
    with httpx.stream("POST", f"{slow.url}/v1/chat/completions", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert "not finite" in json.loads(lines[-2][6:])["error"]["message"]
    until(lambda: slow.engine.running == 0)


def test_engine_killed_in_mid_stream(slow: Running) -> None:
    slow.engine.fail_after = 4
    for route, body in ROUTES.items():
        with httpx.stream("POST", slow.url + route, json={**body, "stream": True}) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        error = json.loads(lines[-2][6:])["error"]
        assert (error["code"], error["type"]) == ("engine_dead", "service_unavailable")
    assert httpx.get(f"{slow.url}/ready").status_code == 503
    assert httpx.get(f"{slow.url}/health").status_code == 503


def test_port_in_use_is_known_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)) as caught:
            bind(ServerSettings(port=port))
    assert (caught.value.field, caught.value.value) == ("server.port", port)
    assert "--port" in str(caught.value.hint)


def test_address_that_is_not_ours() -> None:
    with pytest.raises(ConfigError) as caught:
        bind(ServerSettings(host="192.0.2.1", port=0))
    assert caught.value.field == "server.host"
