"""A client of any protocol that goes frees what it held, streaming or not."""

from __future__ import annotations

import contextlib

import httpx
import pytest
from running import Running
from test_disconnects import HI, until

ROUTES = {
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 200},
    "/api/chat": {"model": "tiny", "messages": HI},
    "/api/generate": {"model": "tiny", "prompt": "Hi"},
}


@pytest.fixture
def slow(server: Running) -> Running:
    server.engine.script = lambda request: [10] * 200
    server.engine.delay_s = 0.02
    return server


@pytest.mark.parametrize("route", ROUTES)
def test_stream(slow: Running, route: str) -> None:
    with httpx.stream("POST", slow.url + route, json={**ROUTES[route], "stream": True}) as reply:
        lines = reply.iter_lines()  # kept: closing it closes the connection
        next(lines)
        assert slow.engine.running == 1
    until(lambda: slow.engine.running == 0)
    assert (slow.engine.cancelled, slow.engine.finished) == (1, 0)


@pytest.mark.parametrize("route", ROUTES)
def test_whole_answer(slow: Running, route: str) -> None:
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(slow.url + route, json={**ROUTES[route], "stream": False}, timeout=0.4)
    until(lambda: slow.engine.running == 0 and slow.engine.cancelled == 1)
