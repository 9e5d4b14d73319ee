"""The unmodified anthropic client against a real server process with the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.e2e.process import ServerProcess, wait_until

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
}
RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})
GREEDY: dict[str, Any] = {"model": "demo", "max_tokens": 200, "extra_body": {"temperature": 0}}


def asks(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(demo_server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0) as made:
        yield made


def test_whole_and_streamed_are_the_same(client: anthropic.Anthropic) -> None:
    messages = asks("What is the capital of France?")
    whole = client.messages.create(**GREEDY, messages=messages)
    with client.messages.stream(**GREEDY, messages=messages) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert whole.content[0].text == text
    assert "Paris" in text
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    total = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model="demo", messages=messages).input_tokens == total


async def test_async_client(demo_server: ServerProcess) -> None:
    async with anthropic.AsyncAnthropic(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        reply = await client.messages.create(**GREEDY, messages=asks("What is 12 plus 30?"))
        assert reply.content[0].type == "text"
        assert "42" in reply.content[0].text


def test_a_tool_is_called_and_its_result_used(client: anthropic.Anthropic) -> None:
    messages = asks("What is the weather in Paris?")
    with client.messages.stream(**GREEDY, messages=messages, tools=[WEATHER]) as stream:  # type: ignore[list-item]
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    (call,) = first.content
    assert call.type == "tool_use"
    assert call.name == "get_weather"
    assert call.input["city"] == "Paris"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(**GREEDY, messages=messages, tools=[WEATHER])  # type: ignore[list-item]
    assert second.content[0].type == "text"
    assert "21" in second.content[0].text


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_can_be_forced(client: anthropic.Anthropic, choice: Any) -> None:
    reply = client.messages.create(**GREEDY, messages=asks("Hello"), tools=[WEATHER], tool_choice=choice)
    assert reply.stop_reason == "tool_use"
    assert [block.type for block in reply.content] == ["tool_use"]
    assert "city" in reply.content[0].input  # type: ignore[union-attr]


def test_an_answer_of_a_schema(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["city", "sure"],
        "additionalProperties": False,
    }
    reply = client.messages.create(
        **GREEDY,
        messages=asks("What is the capital of France?"),
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert reply.content[0].type == "text"
    assert json.loads(reply.content[0].text).keys() == {"city", "sure"}


def test_thinking(client: anthropic.Anthropic) -> None:
    messages = asks("What is 12 plus 30?")
    reply = client.messages.create(**GREEDY, messages=messages, thinking={"type": "enabled", "budget_tokens": 1024})
    thought, said = reply.content
    assert thought.type == "thinking"
    assert thought.thinking
    assert said.type == "text"
    assert "42" in said.text
    # And back: a thinking block is part of the conversation that the client sends.
    history: list[Any] = [*messages, {"role": "assistant", "content": reply.content}, *asks("What is 1 plus 1?")]
    again = client.messages.create(**GREEDY, messages=history)
    assert [block.type for block in again.content] == ["text"]


def test_stop_sequence(client: anthropic.Anthropic) -> None:
    messages = asks("What is the capital of France?")
    reply = client.messages.create(**GREEDY, messages=messages, stop_sequences=["Paris"])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "Paris")


def test_closing_a_stream_frees_the_request(demo_server: ServerProcess, client: anthropic.Anthropic) -> None:
    client.messages.create(model="demo", max_tokens=1, messages=asks("Hello"))
    before = demo_server.metric("core_requests_total", 'finish_reason="abort"')
    stream = client.messages.create(
        model="demo", max_tokens=3000, messages=asks("Hello"), stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(
        lambda: demo_server.metric("core_requests_total", 'finish_reason="abort"') == before + 1, what="one more abort"
    )
