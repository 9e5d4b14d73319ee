"""The unmodified openai client's responses against a real server process with the demo model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.process import ServerProcess, wait_until

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
}
QUESTION = "What is the weather in Paris?"
RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})


@pytest.fixture
def client(demo_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "input": "What is the capital of France?", "temperature": 0}
    whole = client.responses.create(**options)
    assert "Paris" in whole.output_text
    text = "".join(
        event.delta
        for event in client.responses.create(**options, stream=True)
        if event.type == "response.output_text.delta"
    )
    assert text == whole.output_text
    with client.responses.stream(**options) as stream:
        assert stream.get_final_response().output_text == text


async def test_async_client(demo_server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0) as client:
        reply = await client.responses.create(model="demo", input="What is 12 plus 30?", temperature=0)
        assert "42" in reply.output_text


def test_a_tool_is_called_and_its_result_used(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    options: dict[str, Any] = {"model": "demo", "tools": [WEATHER], "temperature": 0}
    with client.responses.stream(input=items, **options) as stream:
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)["city"]) == ("get_weather", "Paris")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    by_items = client.responses.create(input=[*items, call.to_dict(), result], **options)
    by_chain = client.responses.create(input=[result], previous_response_id=first.id, **options)
    assert "21" in by_items.output_text
    assert by_chain.output_text == by_items.output_text


def test_parse_gives_the_arguments_of_a_model(client: openai.OpenAI) -> None:
    class GetWeather(BaseModel):
        """Get the current weather of a city"""

        city: str = Field(description="Name of the city")

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    reply = client.responses.parse(model="demo", input=QUESTION, temperature=0, tools=[tool])
    (call,) = reply.output
    assert call.type == "function_call"
    assert call.parsed_arguments == GetWeather(city="Paris")


class Capital(BaseModel):
    city: str = Field(max_length=20)
    sure: bool


def test_parse_gives_an_answer_of_a_model(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "input": "What is the capital of France?", "max_output_tokens": 300}
    reply = client.responses.parse(**options, text_format=Capital)
    assert isinstance(reply.output_parsed, Capital)
    with client.responses.stream(**options, text_format=Capital) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Capital)


def test_parse_after_reasoning(client: openai.OpenAI) -> None:
    reply = client.responses.parse(
        model="demo", input="What is 12 plus 30?", text_format=Capital, temperature=0, reasoning={"effort": "high"}
    )
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert isinstance(reply.output_parsed, Capital)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_can_be_forced(client: openai.OpenAI, choice: Any) -> None:
    reply = client.responses.create(
        model="demo", input="Hello", tools=[WEATHER], tool_choice=choice, temperature=0, max_output_tokens=300
    )
    assert [item.type for item in reply.output] == ["function_call"]
    assert "city" in json.loads(reply.output[0].arguments)  # type: ignore[union-attr]


def test_reasoning(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "input": "What is 12 plus 30?", "temperature": 0}
    reply = client.responses.create(**options, reasoning={"effort": "high", "summary": "auto"})
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].summary[0].text  # type: ignore[union-attr]
    assert "42" in reply.output_text
    assert reply.usage is not None
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    plain = client.responses.create(**options, reasoning={"effort": "none"})
    assert [item.type for item in plain.output] == ["message"]


def test_background(client: openai.OpenAI) -> None:
    made = client.responses.create(model="demo", input="Hello", background=True, temperature=0)
    while made.status in ("queued", "in_progress"):
        time.sleep(0.05)
        made = client.responses.retrieve(made.id)
    assert made.status == "completed"
    assert made.output_text


def test_closing_a_stream_frees_the_request(demo_server: ServerProcess, client: openai.OpenAI) -> None:
    client.responses.create(model="demo", input="Hello", max_output_tokens=1)
    before = demo_server.metric("core_requests_total", 'finish_reason="abort"')
    stream = client.responses.create(model="demo", input="Hello", stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    wait_until(
        lambda: demo_server.metric("core_requests_total", 'finish_reason="abort"') == before + 1, what="one more abort"
    )
