"""Kept responses: chains, background, bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running import Running

from core.interfaces.errors import Overloaded, RequestError
from core.server.responses.store import Kept, ResponseStore

TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}]


@pytest.fixture
def server(launch) -> Iterator[Running]:
    with launch(context_length=2048, response_store=3) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def prompt_of(server: Running) -> str:
    return server.tokenizer.decode(list(server.engine.requests[-1].prompt), skip_special_tokens=False)


def until(client: openai.OpenAI, name: str, *statuses: str) -> Any:
    for _ in range(1000):
        reply = client.responses.retrieve(name)
        if reply.status in statuses:
            return reply
        time.sleep(0.01)
    raise AssertionError(reply.status)


def test_a_kept_response_is_what_was_answered(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="Hi")
    assert made.store is True
    assert client.responses.retrieve(made.id) == made
    streamed = list(client.responses.create(model="tiny", input="Hi", stream=True))[-1].response
    assert client.responses.retrieve(streamed.id) == streamed
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match=made.id):
        client.responses.retrieve(made.id)


def test_what_shall_not_be_kept_is_not(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_chain_of_three(server: Running, client: openai.OpenAI) -> None:
    server.says('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>')
    first = client.responses.create(model="tiny", input="Weather?", tools=TOOLS, instructions="Be nice.")
    server.says("Sunny.")
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "sun"}
    second = client.responses.create(model="tiny", input=[result], previous_response_id=first.id, tools=TOOLS)
    third = client.responses.create(model="tiny", input="Thanks", previous_response_id=second.id)
    prompt = prompt_of(server)
    places = [prompt.index(word) for word in ("Weather?", "Oslo", "sun", "Sunny.", "Thanks")]
    assert places == sorted(places)
    assert "Be nice." not in prompt  # instructions are one request's
    assert third.previous_response_id == second.id
    listed = client.responses.input_items.list(third.id, order="asc")
    assert [item.type for item in listed] == [
        "message", "function_call", "function_call_output", "message", "message",
    ]  # fmt: skip
    pages = client.responses.input_items.list(third.id, limit=2)
    assert [item.id for item in pages] == [item.id for item in listed][::-1]


@pytest.mark.parametrize(("query", "names"), [("order=up", "order"), ("limit=0", "limit"), ("after=x", "after")])
def test_bad_pages(server: Running, client: openai.OpenAI, query: str, names: str) -> None:
    made = client.responses.create(model="tiny", input="Hi")
    reply = httpx.get(f"{server.url}/v1/responses/{made.id}/input_items?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, names)


def test_background(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="Hi", background=True)
    assert (made.status, made.background) == ("queued", True)
    done = until(client, made.id, "completed")
    assert done.output_text == "Hello, world 🙂!"
    assert client.responses.cancel(made.id) == done  # too late, and no error


def test_background_outlives_its_client_and_ends_by_cancel(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: [10] * 1000
    server.engine.delay_s = 0.02
    made = client.responses.create(model="tiny", input="Hi", background=True)
    until(client, made.id, "in_progress")
    with pytest.raises(openai.BadRequestError, match="in_progress"):
        client.responses.create(model="tiny", input="Hi", previous_response_id=made.id)
    assert client.responses.cancel(made.id).status == "cancelled"
    assert (server.engine.running, server.engine.cancelled) == (0, 1)
    assert client.responses.retrieve(made.id).status == "cancelled"
    other = client.responses.create(model="tiny", input="Hi", background=True)
    client.responses.delete(other.id)
    assert server.engine.running == 0


def test_background_that_fails(server: Running, client: openai.OpenAI) -> None:
    server.engine.overloaded = True
    made = client.responses.create(model="tiny", input="Hi", background=True)
    assert "queue is full" in until(client, made.id, "failed").error.message


def test_only_so_many_run(server: Running, client: openai.OpenAI) -> None:
    server.engine.delay_s = 30
    made = [client.responses.create(model="tiny", input="Hi", background=True) for _ in range(3)]
    with pytest.raises(openai.RateLimitError, match="background"):
        client.responses.create(model="tiny", input="Hi", background=True)
    for response in made:
        client.responses.cancel(response.id)


def test_what_cannot_be_cancelled(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="Hi")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model="tiny", input="Hi", background=True, stream=True)
    with pytest.raises(openai.BadRequestError, match="stream"):
        list(client.responses.retrieve(made.id, stream=True))


def test_the_oldest_go_by_number(client: openai.OpenAI) -> None:
    made = [client.responses.create(model="tiny", input="Hi").id for _ in range(4)]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made[0])
    assert [client.responses.retrieve(name).id for name in made[1:]] == made[1:]


def kept(name: str, status: str = "completed", text: str = "") -> Kept:
    return Kept({"id": name, "status": status, "output": [text]}, [])


def test_the_oldest_go_by_bytes_and_what_is_too_large_goes_itself() -> None:
    store = ResponseStore(100, 1000)
    for name in "abc":
        store.put(kept(name, text="x" * 400))
    assert (len(store), store.get("b").size_bytes + store.get("c").size_bytes) == (2, store.size_bytes)
    store.put(kept("d", text="x" * 2000))
    assert len(store) == 2
    with pytest.raises(RequestError):
        store.get("d")


def test_what_runs_stays_and_is_counted_when_it_is_done() -> None:
    store = ResponseStore(2, 1000)
    running = kept("a", "in_progress")
    store.put(running)
    store.put(kept("b"))
    store.put(kept("c"))
    assert store.get("a") is running
    with pytest.raises(RequestError):
        store.get("b")
    store.put(kept("d", "queued"))
    with pytest.raises(Overloaded):
        store.reserve()
    running.response = {**running.response, "status": "completed", "output": ["x" * 300]}
    store.put(running)
    store.reserve()
    assert store.size_bytes == running.size_bytes + store.get("d").size_bytes > 300
    asyncio.run(store.delete("a"))
    asyncio.run(store.delete("d"))
    assert (len(store), store.size_bytes) == (0, 0)


def test_a_response_is_its_owner_s() -> None:
    store = ResponseStore(2, 1000)
    store.put(Kept({"id": "a", "status": "completed"}, [], owner="alice"))
    assert store.get("a", "alice").response["id"] == "a"
    for other in ("bob", None):
        with pytest.raises(RequestError):
            store.get("a", other)
        with pytest.raises(RequestError):
            asyncio.run(store.delete("a", other))
    assert len(store) == 1


KEYS = """
[[keys]]
name = "alice"
key = "alice-key"
max_concurrent = 1

[[keys]]
name = "bob"
key = "bob-key"
"""


def test_keys_keep_responses_apart_and_count_work_in_the_background(launch, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    path.chmod(0o600)
    with launch(context_length=2048, response_store=3, api_keys_file=str(path)) as server:
        options = {"base_url": f"{server.url}/v1", "max_retries": 0}
        with openai.OpenAI(api_key="alice-key", **options) as alice, openai.OpenAI(api_key="bob-key", **options) as bob:
            made = alice.responses.create(model="tiny", input="Hi")
            assert alice.responses.retrieve(made.id).id == made.id
            with pytest.raises(openai.NotFoundError):
                bob.responses.retrieve(made.id)
            with pytest.raises(openai.BadRequestError):
                bob.responses.create(model="tiny", input="Hi", previous_response_id=made.id)
            server.engine.delay_s = 30
            running = alice.responses.create(model="tiny", input="Hi", background=True)
            with pytest.raises(openai.RateLimitError, match="1 requests at a time"):
                alice.responses.create(model="tiny", input="Hi")
            alice.responses.cancel(running.id)
            server.engine.delay_s = 0
            assert alice.responses.create(model="tiny", input="Hi").status == "completed"
