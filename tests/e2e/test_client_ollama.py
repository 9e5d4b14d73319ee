"""The unmodified ollama client against a real server process with the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.e2e.process import ServerProcess, wait_until

GREEDY: dict[str, Any] = {"model": "demo", "options": {"temperature": 0}}
RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}


def asks(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(demo_server: ServerProcess) -> Iterator[ollama.Client]:
    made = ollama.Client(host=demo_server.url)
    yield made
    made._client.close()


def test_chat_whole_and_streamed_are_the_same(client: ollama.Client) -> None:
    messages = asks("What is the capital of France?")
    whole = client.chat(**GREEDY, messages=messages)
    parts = list(client.chat(**GREEDY, messages=messages, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert "Paris" in (whole.message.content or "")
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


async def test_async_client(demo_server: ServerProcess) -> None:
    client = ollama.AsyncClient(host=demo_server.url)
    texts = [part.response async for part in await client.generate(**GREEDY, prompt="What is 12 plus 30?", stream=True)]
    assert "42" in "".join(texts)
    await client._client.aclose()


def test_generate_with_the_template_and_without(client: ollama.Client) -> None:
    asked = client.generate(**GREEDY, prompt="What is the capital of France?")
    raw = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert client.generate(**GREEDY, prompt=raw, raw=True).response == asked.response
    assert asked.prompt_eval_count == client.generate(**GREEDY, prompt=raw, raw=True).prompt_eval_count


def test_a_tool_is_called_and_its_result_used(client: ollama.Client) -> None:
    messages = asks("What is the weather in Paris?")
    parts = list(client.chat(**GREEDY, messages=messages, tools=[WEATHER], stream=True))
    (said,) = [part.message for part in parts if part.message.tool_calls]
    (call,) = said.tool_calls or ()
    assert (call.function.name, call.function.arguments["city"]) == ("get_weather", "Paris")
    messages += [said, {"role": "tool", "content": RESULT, "tool_name": "get_weather"}]
    reply = client.chat(**GREEDY, messages=messages, tools=[WEATHER])
    assert "21" in (reply.message.content or "")


def test_an_answer_of_a_schema(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["city", "sure"],
        "additionalProperties": False,
    }
    messages = asks("What is the capital of France?")
    reply = client.chat(**GREEDY, messages=messages, format=schema)
    assert json.loads(reply.message.content or "").keys() == {"city", "sure"}
    options = {"temperature": 0, "num_predict": 20}
    said = client.generate(model="demo", prompt="What is the capital of France?", format="json", options=options)
    assert said.response.startswith("{")  # nothing that it says by itself


def test_thinking(client: ollama.Client) -> None:
    messages = asks("What is 12 plus 30?")
    thoughtful = client.chat(**GREEDY, messages=messages, think=True)
    assert thoughtful.message.thinking
    assert "42" in (thoughtful.message.content or "")
    assert client.chat(**GREEDY, messages=messages, think=False).message.thinking is None


def test_the_model(client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == "demo"
    assert (listed.size or 0) > 10_000_000
    assert "tools" in (client.show("demo:latest").capabilities or ())
    assert [model.name for model in client.ps().models] == ["demo"]


def test_closing_a_stream_frees_the_request(demo_server: ServerProcess, client: ollama.Client) -> None:
    client.generate(model="demo", prompt="Hello", options={"num_predict": 1})
    before = demo_server.metric("core_requests_total", 'finish_reason="abort"')
    stream = client.generate(model="demo", prompt="Hello", options={"ignore_eos": True}, stream=True)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    wait_until(
        lambda: demo_server.metric("core_requests_total", 'finish_reason="abort"') == before + 1, what="one more abort"
    )
