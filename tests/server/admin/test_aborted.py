"""Requests that somebody aborts end with what they have, in every protocol; the engine is a real one."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from core.testing.server import MemoryServer, memory_server

LONG = {"ignore_eos": True, "seed": 3}
SAID = [{"role": "user", "content": "hello"}]


async def ended(server: MemoryServer, path: str, body: dict[str, Any]) -> httpx.Response:
    """The reply to a request that is aborted once it has given some tokens."""
    asked = asyncio.create_task(server.client.post(path, json=body, headers={"x-request-id": "mine"}))
    async with asyncio.timeout(20):
        while server.engine.num_tokens < 40:
            await asyncio.sleep(0)
    assert server.engine.abort(["other"]) == 0
    assert server.engine.abort(["mine"]) == 1
    reply: httpx.Response = await asked
    assert reply.status_code == 200
    assert server.engine.num_requests == 0
    return reply


@pytest.fixture
async def server() -> Any:
    async with memory_server() as running:
        yield running


async def test_completions_and_native(server: MemoryServer) -> None:
    reply = (await ended(server, "/v1/completions", {"prompt": "ab", "max_tokens": 1900, **LONG})).json()
    assert reply["choices"][0]["finish_reason"] == "abort"
    assert 30 < reply["usage"]["completion_tokens"] < 1900
    native = {"text": "ab", "sampling_params": {"max_new_tokens": 1900, **LONG}}
    found = (await ended(server, "/generate", native)).json()["meta_info"]
    assert found["finish_reason"] == {"type": "abort", "message": "the request was aborted"}
    assert 30 < found["completion_tokens"] < 1900


async def test_a_stream_ends_as_streams_end(server: MemoryServer) -> None:
    reply = await ended(server, "/v1/completions", {"prompt": "ab", "max_tokens": 1900, "stream": True, **LONG})
    events = [line for line in reply.text.splitlines() if line]
    assert '"finish_reason":"abort"' in events[-2]
    assert "error" not in reply.text
    assert events[-1] == "data: [DONE]"


async def test_one_that_waits_ends_with_nothing(server: MemoryServer) -> None:
    await server.engine.control("pause")
    asked = asyncio.create_task(server.client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 3}))
    async with asyncio.timeout(20):
        while not server.engine.num_requests:
            await asyncio.sleep(0)
    assert server.engine.abort() == 1  # before its first token: nothing is what there is
    reply = (await asked).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == ("", "abort")
    await server.engine.control("resume")


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/chat/completions", {"max_tokens": 1900}, ["choices", 0, "finish_reason"]),
        ("/v1/messages", {"max_tokens": 1900}, ["stop_reason"]),
        ("/v1/responses", {"max_output_tokens": 1900}, ["incomplete_details", "reason"]),
        ("/api/chat", {"options": {"num_predict": 1900}, "stream": False}, ["done_reason"]),
    ],
)
async def test_each_protocol_says_so_in_its_words(
    server: MemoryServer, path: str, body: dict[str, Any], told: list[Any]
) -> None:
    said = {"input": "hello"} if path == "/v1/responses" else {"messages": SAID}
    options = {"options": {**body["options"], "ignore_eos": True}} if path == "/api/chat" else {"ignore_eos": True}
    found = (await ended(server, path, {"model": "mock", **said, **body, **options})).json()
    for step in told:
        found = found[step]
    assert found == ("aborted" if path == "/v1/responses" else "abort")
