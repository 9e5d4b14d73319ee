"""Tenants over HTTP: who gets in, what is refused with which headers, and what /metrics tells."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from core.interfaces.errors import RequestError

KEYS = """
[[keys]]
name = "small"
key = "small-key"
requests_per_minute = 3
tokens_per_minute = 2000
max_concurrent = 2
max_tokens = 50

[[keys]]
name = "few"
key = "few-key"
tokens_per_minute = 60

[[keys]]
name = "one"
key = "one-key"
max_concurrent = 1
weight = 3.0
priority = 4
priority_range = [0, 5]
cache_isolation = true

[[keys]]
name = "two"
key = "two-key"
cache_isolation = true
"""


@pytest.fixture
def served(launch: Any, tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    path.chmod(0o600)

    @contextmanager
    def run(**settings: Any) -> Iterator[Any]:
        with launch(api_keys_file=str(path), **settings) as server:
            yield server

    return run


def ask(server: Any, key: str | None, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{server.url}/generate", json={"text": "Hi", **body}, headers=headers)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_who_gets_in(served: Any) -> None:
    with served() as server:
        assert ask(server, "two-key").status_code == 200
        assert ask(server, "wrong").status_code == 401
        assert ask(server, None).status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": "two-key"}).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        shown = httpx.get(f"{server.url}/server_info", headers={"x-api-key": "two-key"}).text
        assert "-key" not in shown.replace("api_key", "")


def test_the_openai_client_is_told_how_much_is_left(served: Any) -> None:
    with served() as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="small-key", max_retries=0)
        messages: Any = [{"role": "user", "content": "Hi"}]
        for left in (2, 1, 0):
            raw = client.chat.completions.with_raw_response.create(model="tiny", messages=messages)
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
            assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 2000
            assert raw.headers["x-ratelimit-limit-tokens"] == "2000"
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=messages)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 20
        with pytest.raises(openai.RateLimitError):  # a status, not an event
            client.chat.completions.create(model="tiny", messages=messages, stream=True)
        client.models.list()  # what generates nothing counts nothing
        text = httpx.get(f"{server.url}/metrics").text
        assert 'core_tenant_requests_total{tenant="small"} 3.0' in text
        assert 'core_tenant_refused_requests_total{limit="requests",tenant="small"} 2.0' in text
        assert 'core_tenant_running_requests{tenant="small"} 0.0' in text
        assert 'core_tenant_tokens_total{kind="generation",tenant="two"} 0.0' in text


def test_generated_tokens_are_paid_back_before_the_next_request(served: Any) -> None:
    with served() as server:
        server.says("x" * 100)
        assert ask(server, "few-key", sampling_params={"max_new_tokens": 90}).status_code == 200
        refused = ask(server, "few-key")
        assert refused.status_code == 429
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert int(refused.headers["retry-after"]) >= 30
        long = ask(server, "few-key", text="y" * 100)
        assert long.status_code == 400
        assert long.json()["error"]["code"] == "request_too_large"


def test_a_client_that_leaves_makes_room(served: Any) -> None:
    with served() as server:
        server.engine.gate = asyncio.Event()
        headers = {"authorization": "Bearer one-key"}
        body = {"text": "Hi", "stream": True}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=0.3)
        until(lambda: server.engine.running == 0)
        tenant = server.ctx.tenants.find([b"one-key"])
        until(lambda: tenant.concurrent == 0)
        server.loop.call_soon_threadsafe(server.engine.gate.set)
        assert ask(server, "one-key").status_code == 200


def test_one_at_a_time(served: Any) -> None:
    with served() as server:
        server.engine.gate = asyncio.Event()
        answers: list[httpx.Response] = []
        first = threading.Thread(target=lambda: answers.append(ask(server, "one-key")))
        first.start()
        until(lambda: server.engine.running == 1)
        refused = ask(server, "one-key")
        assert refused.status_code == 429
        assert "at a time" in refused.json()["error"]["message"]
        server.loop.call_soon_threadsafe(server.engine.gate.set)
        first.join(10)
        assert answers[0].status_code == 200
        assert ask(server, "one-key").status_code == 200


def test_what_reaches_the_engine(served: Any) -> None:
    with served(cache_isolation="off", request_timeout_s=60) as server:
        for key, more in (("one-key", {}), ("one-key", {"cache_salt": "s"}), ("two-key", {}), ("small-key", {})):
            assert ask(server, key, **more).status_code == 200
        one, salted, two, small = server.engine.requests
        assert (one.tenant, one.weight, one.priority) == ("one", 3.0, 4)
        assert len({r.namespace.encode() for r in (one, salted, two, small)}) == 4
        assert small.namespace.salt == ""
        assert small.sampling.max_tokens == 50
        assert {r.timeout_s for r in server.engine.requests} == {60}
        assert ask(server, "one-key", priority=0).status_code == 200
        assert server.engine.requests[-1].priority == 0
        refused = ask(server, "one-key", priority=6)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "priority"
        assert "0 to 5" in refused.text
        shorter = httpx.post(
            f"{server.url}/generate",
            json={"text": "Hi"},
            headers={"x-api-key": "two-key", "X-Request-Timeout": "2"},
        )
        assert shorter.status_code == 200
        assert server.engine.requests[-1].timeout_s == 2


def test_without_keys_a_request_can_have_a_time(server: Any) -> None:
    url = f"{server.url}/generate"
    assert httpx.post(url, json={"text": "Hi"}, headers={"x-request-timeout": "3"}).status_code == 200
    assert server.engine.requests[-1].timeout_s == 3
    assert server.engine.requests[-1].tenant == ""
    assert httpx.post(url, json={"text": "Hi"}, headers={"x-request-timeout": "x"}).status_code == 400
    assert "core_tenant" not in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_is_told(server: Any, stream: bool) -> None:
    """The engine ends a request by an error that has a status: before the first token it is the response's, behind
    it an error event."""

    async def late(request: Any) -> Any:
        if stream:
            yield server.engine._chunk(request, 10, 0, 100)
        raise RequestError("the request took longer than its timeout", code="timeout", status=504)

    server.engine.generate = late
    server.ctx._limited = None
    reply = httpx.post(f"{server.url}/v1/chat/completions", json={
        "model": "tiny", "stream": stream, "messages": [{"role": "user", "content": "Hi"}]})  # fmt: skip
    assert reply.status_code == (200 if stream else 504)
    assert '"code":"timeout"' in reply.text


def test_keys_are_read_again(served: Any, tmp_path: Path) -> None:
    with served() as server:
        (tmp_path / "keys.toml").write_text('[[keys]]\nname = "new"\nkey = "new-key"\n')
        assert ask(server, "new-key").status_code == 401
        assert server.ctx.tenants.reload()
        assert ask(server, "new-key").status_code == 200
        assert ask(server, "two-key").status_code == 401
