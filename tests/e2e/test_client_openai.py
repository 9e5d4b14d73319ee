"""The unmodified openai client's chats and completions against a real server process with the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.process import ServerProcess

WEATHER: dict[str, Any] = {
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
RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})
GREEDY: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 200}


def asks(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(demo_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    messages = asks("What is the capital of France?")
    whole = client.chat.completions.create(**GREEDY, messages=messages)
    chunks = list(
        client.chat.completions.create(**GREEDY, messages=messages, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert whole.choices[0].message.content == text
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    told, counted = chunks[-1].usage, whole.usage
    assert told is not None
    assert counted is not None
    assert (told.prompt_tokens, told.completion_tokens) == (counted.prompt_tokens, counted.completion_tokens)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_async_client(demo_server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0) as client:
        messages = asks("What is 12 plus 30?")
        reply = await client.chat.completions.create(**GREEDY, messages=messages)
        stream = await client.chat.completions.create(**GREEDY, messages=messages, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert "42" in text
        assert reply.choices[0].message.content == text
        assert [model.id async for model in client.models.list()] == ["demo"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_used(client: openai.OpenAI, stream: bool) -> None:
    messages = asks("What is the weather in Paris?")
    options: dict[str, Any] = {**GREEDY, "tools": [WEATHER]}
    if stream:
        with client.chat.completions.stream(**options, messages=messages) as events:
            names = [event.type for event in events]
            first = events.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in names
    else:
        first = client.chat.completions.create(**options, messages=messages).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)["city"]) == ("get_weather", "Paris")
    # The client's own message objects go back as they are.
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    second = client.chat.completions.create(**options, messages=messages).choices[0]
    assert second.finish_reason == "stop"
    assert "21" in (second.message.content or "")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_can_be_forced(client: openai.OpenAI, choice: Any) -> None:
    reply = client.chat.completions.create(**GREEDY, messages=asks("Hello"), tools=[WEATHER], tool_choice=choice)
    (call,) = reply.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert "city" in json.loads(call.function.arguments)


class Capital(BaseModel):
    """The answer's form."""

    city: str = Field(max_length=20)
    sure: bool


class GetWeather(BaseModel):
    """Get the current weather of a city"""

    city: str = Field(description="Name of the city")


def test_parse_gives_an_answer_of_a_model(client: openai.OpenAI) -> None:
    messages = asks("What is the capital of France?")
    reply = client.chat.completions.parse(**GREEDY, messages=messages, response_format=Capital)
    assert isinstance(reply.choices[0].message.parsed, Capital)
    with client.chat.completions.stream(**GREEDY, messages=messages, response_format=Capital) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == reply.choices[0].message.parsed


def test_parse_gives_the_arguments_of_a_model(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    messages = asks("What is the weather in Paris?")
    reply = client.chat.completions.parse(**GREEDY, messages=messages, tools=[tool])
    (call,) = reply.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == GetWeather(city="Paris")


def test_json_object(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        **{**GREEDY, "max_tokens": 30},
        messages=asks("What is the capital of France?"),
        response_format={"type": "json_object"},
    )
    assert (reply.choices[0].message.content or "").startswith("{")  # nothing that it says by itself


def test_logprobs_are_those_of_the_text(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        **GREEDY, messages=asks("What is the capital of France?"), logprobs=True, top_logprobs=2
    )
    said, logprobs = reply.choices[0].message.content, reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(entry.bytes or ()) for entry in logprobs.content).decode() == said
    # Greedy: what was chosen is the first of the best.
    assert all(entry.token == entry.top_logprobs[0].token for entry in logprobs.content)


def test_completions_echo_with_logprobs(client: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    options: dict[str, Any] = {**GREEDY, "max_tokens": 4, "prompt": prompt}
    plain = client.completions.create(**options)
    (choice,) = client.completions.create(**options, echo=True, logprobs=1).choices
    assert choice.text.endswith(plain.choices[0].text)
    assert "What is the capital of France?" in choice.text
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert plain.usage is not None
    assert len(logprobs.tokens) == plain.usage.total_tokens
    assert logprobs.token_logprobs[0] is None  # type: ignore[comparison-overlap]
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    streamed = client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == plain.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve("demo").id == model.id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_vectors_of_a_server_that_generates_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="demo", input="Hello")


def test_embeddings(tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with (
        ServerProcess(None, log, "--cpu-threads", "1", "--task", "embed", "--matryoshka") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        # The client asks for base64 by itself, and for numbers if told to.
        packed = client.embeddings.create(model="demo", input=["Hello", "What is 12 plus 30?"])
        plain = client.embeddings.create(model="demo", input="Hello", encoding_format="float")
        short = client.embeddings.create(model="demo", input="Hello", dimensions=16)
    assert [entry.index for entry in packed.data] == [0, 1]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert len(plain.data[0].embedding) == 256
    assert sum(value * value for value in plain.data[0].embedding) == pytest.approx(1.0, abs=1e-4)
    assert len(short.data[0].embedding) == 16
    assert packed.usage.prompt_tokens > plain.usage.prompt_tokens > 0
