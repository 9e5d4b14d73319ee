"""SageMaker's and Vertex AI's doors lead to the routes that they stand for."""

from __future__ import annotations

import contextlib
import json

import httpx
import pytest
from running import Running
from test_disconnects import until

from core.server.context import Phase

TEXT = "Hello, world 🙂!"
HI = [{"role": "user", "content": "Hi"}]


def test_ping_is_readiness(server: Running) -> None:
    assert httpx.get(f"{server.url}/ping").status_code == 200
    server.engine.ready = False
    assert httpx.get(f"{server.url}/ping").status_code == 503
    server.engine.ready = True
    server.ctx.phase = Phase.DRAINING
    assert httpx.get(f"{server.url}/ping").status_code == 503


def test_invocations(server: Running) -> None:
    url = f"{server.url}/invocations"
    assert httpx.post(url, json={"messages": HI}).json()["choices"][0]["message"]["content"] == TEXT
    assert httpx.post(url, json={"prompt": "Hi", "max_tokens": 50}).json()["choices"][0]["text"] == TEXT
    assert httpx.post(url, json={"text": "Hi"}).json()["text"] == TEXT
    lines = [line for line in httpx.post(url, json={"messages": HI, "stream": True}).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(parts) == TEXT
    wrong = httpx.post(url, json={"messages": []})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "messages")
    nobody = httpx.post(url, json={"question": "Hi"})
    assert (nobody.status_code, "messages" in nobody.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_what_it_asked_for(server: Running, stream: bool) -> None:
    server.engine.script = lambda request: [10] * 200
    server.engine.delay_s = 0.02
    with (
        contextlib.suppress(httpx.TimeoutException),
        httpx.stream(
            "POST", f"{server.url}/invocations", json={"messages": HI, "stream": stream}, timeout=0.4
        ) as reply,
    ):
        next(reply.iter_lines())
    until(lambda: server.engine.running == 0 and server.engine.cancelled == 1)


def test_vertex(server: Running) -> None:
    url = f"{server.url}/vertex_generate"
    body = {"instances": [{"text": "Hi"}, {"text": "Ho"}], "parameters": {"max_new_tokens": 50, "temperature": 0}}
    assert [one["text"] for one in httpx.post(url, json=body, verify=False).json()["predictions"]] == [TEXT, TEXT]
    assert [request.sampling.max_tokens for request in server.engine.requests] == [50, 50]
    ids = httpx.post(url, json={"instances": [{"input_ids": [10, 11]}]}).json()["predictions"]
    assert [one["meta_info"]["prompt_tokens"] for one in ids] == [2]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "instances"),
        ({"instances": []}, "instances"),
        ({"instances": [{"text": "Hi"}, {"input_ids": [1]}]}, "instances[1]"),
        ({"instances": [{"image": "x"}]}, "instances[0]"),
        ({"instances": [{"text": "Hi"}], "parameters": {"temperature": -1}}, "temperature"),
        ({"instances": [{"text": "Hi"}], "more": 1}, "more"),
    ],
)
def test_bad_input(server: Running, body: dict, param: str) -> None:
    reply = httpx.post(f"{server.url}/vertex_generate", json=body, verify=False)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
