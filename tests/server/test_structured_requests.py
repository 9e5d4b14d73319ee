"""Structured output and forced calls with the demo model, through the real application and real clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from core.testing.server import MemoryServer, memory_server

ASK = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2, 3]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["city", "country"]
    name: str = Field(max_length=12)
    people: list[bool] = Field(max_length=2)


SCHEMA = Answer.model_json_schema()


@pytest.fixture(scope="module")
def server() -> Iterator[MemoryServer]:
    with memory_server("demo", max_running_requests=8, max_total_tokens=4096, max_grammar_bytes=5000) as made:
        yield made


@pytest.fixture(scope="module")
def without() -> Iterator[MemoryServer]:
    with memory_server() as made:
        yield made


def chat(server: MemoryServer, **fields: Any) -> Any:
    body = {"messages": ASK, "max_tokens": 500, "seed": 5, "temperature": 0.8, **fields}
    return server.client.post("/v1/chat/completions", json=body)


def content(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def calls(reply: Any) -> list[tuple[str, Any]]:
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    found = choice["message"]["tool_calls"]
    assert all(re.fullmatch("call_[0-9a-f]{24}", call["id"]) for call in found)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]


def events(server: MemoryServer, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": ASK, "max_tokens": 500, "seed": 5, "temperature": 0.8, "stream": True, **fields}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def test_openai_parse(server: MemoryServer) -> None:
    reply = server.openai().chat.completions.parse(
        model=server.model_name,
        messages=ASK,
        response_format=Answer,
        max_tokens=500,
        seed=2,  # type: ignore[arg-type]
    )
    assert isinstance(reply.choices[0].message.parsed, Answer)


@pytest.mark.parametrize("seed", range(4))
def test_json_schema_whatever_is_drawn(server: MemoryServer, seed: int) -> None:
    Answer.model_validate_json(content(chat(server, json_schema=SCHEMA, seed=seed, temperature=1.5)))


def test_every_form(server: MemoryServer) -> None:
    assert re.fullmatch("[a-c]{3}[0-9]{2}x", content(chat(server, regex="[a-c]{3}[0-9]{2}x")))
    assert content(chat(server, guided_choice=["Paris", "Rome"])) in ("Paris", "Rome")
    assert re.fullmatch("a[0-9]{1,3}b", content(chat(server, ebnf='root ::= "a" [0-9]{1,3} "b"')))
    assert content(chat(server, structured_outputs={"choice": ["中", "国"]})) in ("中", "国")
    tag = {"type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "x|y"}, "end": "</a>"}
    assert content(chat(server, response_format={"type": "structural_tag", "format": tag})) in ("<a>x</a>", "<a>y</a>")


def test_streaming(server: MemoryServer) -> None:
    choices = events(server, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}})
    Answer.model_validate_json("".join(choice["delta"].get("content") or "" for choice in choices))
    assert choices[-1]["finish_reason"] == "stop"


def test_other_routes(server: MemoryServer) -> None:
    body = {"prompt": "x", "guided_regex": "[ab]{4}", "max_tokens": 20}
    reply = server.client.post("/v1/completions", json=body)
    assert re.fullmatch("[ab]{4}", reply.json()["choices"][0]["text"])
    native = {"text": ["x", "y"], "sampling_params": {"regex": "[ab]{4}", "max_new_tokens": 20}}
    for made in server.client.post("/generate", json=native).json():
        assert re.fullmatch("[ab]{4}", made["text"])
    assert server.client.post("/generate", json={**native, "regex": "[ab]", "ebnf": "x"}).status_code == 400


def test_samples_have_matchers_of_their_own(server: MemoryServer) -> None:
    reply = chat(server, guided_choice=["yes", "no", "perhaps", "never"], n=6, temperature=5.0, seed=1)
    texts = {choice["message"]["content"] for choice in reply.json()["choices"]}
    assert 1 < len(texts) <= 4
    assert texts <= {"yes", "no", "perhaps", "never"}


def test_after_reasoning(server: MemoryServer) -> None:
    asked = {"messages": [{"role": "user", "content": "What is 3 plus 4?"}], "temperature": 0, "regex": "[ab]{3}"}
    reply = chat(server, **asked, chat_template_kwargs={"enable_thinking": True}, max_tokens=300)
    message = reply.json()["choices"][0]["message"]
    assert len(message.get("reasoning_content", "")) > 3, reply.text
    assert re.fullmatch("[ab]{3}", message["content"])
    assert "reasoning_content" not in chat(server, **asked).json()["choices"][0]["message"]


@pytest.mark.parametrize("parser", ["the model's", "none"])
def test_forced_calls(server: MemoryServer, parser: str) -> None:
    tools = [WEATHER, ADD]
    if parser == "none":
        with memory_server("demo", max_total_tokens=2048, tool_call_parser="none") as plain:
            found = calls(chat(plain, tools=tools, tool_choice="required", parallel_tool_calls=False))
            assert len(found) == 1
            named = {"type": "function", "function": {"name": "add"}}
            pieces = events(plain, tools=tools, tool_choice=named)
            assert {choice["delta"].get("content") or "" for choice in pieces} == {""}
            assert pieces[-1]["finish_reason"] == "tool_calls"
        return
    found = calls(chat(server, tools=tools, tool_choice="required", max_tokens=300))
    assert {name for name, _ in found} <= {"get_weather", "add"}
    ((name, arguments),) = calls(
        chat(server, tools=tools, tool_choice={"type": "function", "function": ADD["function"]})
    )
    assert (name, set(arguments), arguments["a"] in (1, 2, 3)) == ("add", {"a"}, True)
    assert len(calls(chat(server, tools=tools, tool_choice="required", parallel_tool_calls=False))) == 1


def test_forced_calls_stream_a_name_and_then_arguments(server: MemoryServer) -> None:
    choices = events(server, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    assert pieces[0]["function"]["name"] == "get_weather"
    assert set(json.loads("".join(piece["function"]["arguments"] for piece in pieces))) == {"city"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_format_or_calls(server: MemoryServer) -> None:
    for seed in range(3):
        reply = chat(server, tools=[WEATHER], guided_choice=["Paris", "Rome"], seed=seed, temperature=2.0)
        message = reply.json()["choices"][0]["message"]
        assert (message["content"] in ("Paris", "Rome")) != bool(message.get("tool_calls"))


WRONG = [
    ({"json_schema": {"type": "frob"}}, "json_schema", "frob"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "frob"}}}},
     "response_format.json_schema.schema", "frob"),
    ({"regex": "(a"}, "regex", "regex"),
    ({"ebnf": "root ::= other"}, "ebnf", "other"),
    ({"regex": "a", "ebnf": "b"}, "ebnf", "cannot be given together"),
    ({"guided_choice": ["a" * 6000]}, "guided_choice", "at most 5000"),
    ({"regex": "(" * 400 + ")" * 400}, "regex", "deep"),
    ({"tools": [WEATHER, {"type": "function", "function": {"name": "x", "parameters": {"type": "frob"}}}],
      "tool_choice": "required"}, "tools[1].function.parameters", "frob"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [WEATHER], "tool_choice": "required", "regex": "a"}, "regex", "tool_choice forces"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
     "tool_choice.function.name", "none of the tools"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "told"), WRONG)
def test_wrong_requests(server: MemoryServer, fields: dict[str, Any], param: str, told: str, stream: bool) -> None:
    reply = chat(server, **fields, stream=stream)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], told in error["message"]) == (400, param, True), error


def test_without_a_backend(without: MemoryServer) -> None:
    reply = chat(without, regex="a")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "regex")
    assert "kind grammar" in reply.text
    assert chat(without, tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]).status_code == 200


def test_what_is_in_effect(server: MemoryServer, without: MemoryServer) -> None:
    assert server.resolution.effective["grammar_backend"] in ("llguidance", "xgrammar")
    assert without.resolution.effective["grammar_backend"] == "none"
