"""Whatever stands in place of a part of a good request: it is answered, or refused in the protocol's shape."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Running

CALL = {"name": "w", "arguments": {"a": 1}}
TOOL = {"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "b"}]},
            {"type": "function_call", "call_id": "1", "name": "w", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "c"}]},
        ],
        "instructions": "i",
        "tools": [{"type": "function", "name": "w", "parameters": {}, "description": "d"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "w"}]},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "metadata": {"a": "b"},
        "max_output_tokens": 3,
        "stream": False,
    },
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "b", "signature": ""},
                    {"type": "tool_use", "id": "1", "name": "w", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "c", "is_error": True}],
            },
        ],
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "w", "input_schema": {"type": "object"}, "description": "d"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 5, "display": "omitted"},
        "output_config": {"effort": "low"},
        "stop_sequences": ["x"],
        "max_tokens": 3,
        "stream": False,
    },
    "/api/chat": {
        "model": "tiny",
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "thinking": "t", "tool_calls": [{"id": "1", "function": CALL}]},
            {"role": "tool", "tool_name": "w", "tool_call_id": "1", "content": "c"},
        ],
        "tools": [TOOL],
        "options": {"num_predict": 3, "stop": ["x"], "top_k": 1, "seed": 1, "repeat_last_n": -1},
        "think": True,
        "format": "",
        "keep_alive": "5m",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": False,
    },
    "/api/generate": {"model": "tiny", "prompt": "a", "system": "s", "raw": False, "stream": False, "context": [],
                      "options": {"num_predict": 3}},
}  # fmt: skip
VALUES = st.sampled_from([None, True, 0, -1, 10**30, 0.5, "", "x", "🙂", [], {}, [None], [[]], [5], {"type": "x"}, [{}],
                          [{"type": "text"}], {"a": {"b": []}}])  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            found += places(value[key], (*path, key))
    return found


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(body)
    holder: Any = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return made


@pytest.mark.parametrize("route", BODIES)
def test_the_good_requests_are_answered(refusing_server: Running, route: str) -> None:
    reply = httpx.post(refusing_server.url + route, json=BODIES[route])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("route", BODIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_request_is_answered_or_refused(refusing_server: Running, route: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(places(BODIES[route])))
    body = changed(BODIES[route], path, data.draw(VALUES))
    if path == ("stream",):
        return
    with httpx.Client(verify=False) as client:
        reply = client.post(refusing_server.url + route, json=body)
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert (error if route.startswith("/api/") else error["message"]).strip()


@pytest.mark.parametrize("route", BODIES)
def test_unknown_fields_are_named(refusing_server: Running, route: str) -> None:
    reply = httpx.post(refusing_server.url + route, json={**BODIES[route], "colour": "blue"}, verify=False)
    assert (reply.status_code, reply.headers["core-ignored-fields"]) == (200, "colour")
    refused = httpx.post(refusing_server.url + route, json={**BODIES[route], "watermark": {"key": 1}}, verify=False)
    assert refused.status_code == 400


def test_unknown_options_are_named(refusing_server: Running) -> None:
    body = changed(BODIES["/api/chat"], ("options", "colour"), 5)
    reply = httpx.post(f"{refusing_server.url}/api/chat", json=body, verify=False)
    assert (reply.status_code, reply.headers["core-ignored-fields"]) == (200, "options.colour")
    nested = changed(BODIES["/v1/messages"], ("thinking", "colour"), 5)
    reply = httpx.post(f"{refusing_server.url}/v1/messages", json=nested, verify=False)
    assert reply.headers["core-ignored-fields"] == "thinking.colour"
