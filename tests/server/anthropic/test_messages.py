"""The real anthropic client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import httpx
import pytest
from running import Running

from core.server.anthropic.convert import call_input, chat_request, response_format
from core.server.anthropic.schemas import MessagesBody

TOOLS = [{"name": "weather", "description": "Weather", "input_schema": {"type": "object", "properties": {}}}]
HI = [{"role": "user", "content": "Hi"}]
TEXT = "Hello, world 🙂!"
CALLS = (
    'Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
)


@pytest.fixture
def server(roomy_server: Running) -> Running:
    return roomy_server


@pytest.fixture
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made


def prompt_of(server: Running) -> str:
    return server.tokenizer.decode(list(server.engine.requests[-1].prompt), skip_special_tokens=False)


def test_message(server: Running, client: anthropic.Anthropic) -> None:
    reply = client.messages.create(
        model="tiny", max_tokens=50, system="Be nice.", messages=HI, extra_body={"temperature": 0, "top_k": 5}
    )
    assert [(block.type, block.text) for block in reply.content] == [("text", TEXT)]
    assert (reply.role, reply.type, reply.model, reply.stop_reason, reply.stop_sequence) == (
        "assistant", "message", "tiny", "end_turn", None,
    )  # fmt: skip
    (request,) = server.engine.requests
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.top_k) == (0, 50, 5)
    assert "Be nice." in prompt_of(server)
    cached = len(request.prompt) // 16 * 16
    assert (reply.usage.input_tokens, reply.usage.cache_read_input_tokens) == (len(request.prompt) - cached, cached)
    assert reply.usage.output_tokens == len(server.tokenizer.encode(TEXT)) + 1


def test_stream_is_the_whole_message(server: Running, client: anthropic.Anthropic) -> None:
    server.says(f"<think>Hm, well</think>\n\n{CALLS}")
    options = {"model": "tiny", "max_tokens": 200, "messages": HI, "tools": TOOLS}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    blocks = [block.model_dump(exclude={"id", "parsed_output"}, exclude_none=True) for block in streamed.content]
    assert blocks == [block.model_dump(exclude={"id"}, exclude_none=True) for block in whole.content]
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole.content[0].thinking == "Hm, well"
    assert whole.content[1].text == "\n\nLet me see."
    assert [block.input for block in whole.content[2:]] == [{"city": "Zürich"}, {"city": "Oslo"}]
    assert len({block.id for block in whole.content[2:]}) == 2
    assert whole.content[2].id.startswith("toolu_")
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert whole.stop_reason == "tool_use"


def test_events_in_order(server: Running) -> None:
    server.says(f"<think>Hm</think>{CALLS}")
    body = {"max_tokens": 200, "messages": HI, "tools": TOOLS, "stream": True}
    reply = httpx.post(f"{server.url}/v1/messages", json=body, verify=False)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.splitlines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert names == [event["type"] for event in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [name for name in names if name == "ping"] == ["ping"]
    open_index, seen = None, []
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert open_index is None
                open_index = event["index"]
                seen.append((open_index, event["content_block"]["type"]))
            case "content_block_delta":
                assert event["index"] == open_index
            case "content_block_stop":
                assert event["index"] == open_index
                open_index = None
    assert seen == [(0, "thinking"), (1, "text"), (2, "tool_use"), (3, "tool_use")]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_stop_sequence(server: Running, client: anthropic.Anthropic) -> None:
    reply = client.messages.create(model="tiny", max_tokens=50, messages=HI, stop_sequences=["wor", "nothing"])
    assert (reply.content[0].text, reply.stop_reason, reply.stop_sequence) == ("Hello, ", "stop_sequence", "wor")


def test_max_tokens(client: anthropic.Anthropic) -> None:
    reply = client.messages.create(model="tiny", max_tokens=3, messages=HI)
    assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", 3)


def test_arguments_that_are_no_object_keep_their_text() -> None:
    assert call_input('{"city": "Os') == {"INVALID_JSON": '{"city": "Os'}
    assert call_input("[1]") == {"INVALID_JSON": "[1]"}
    assert call_input("") == {}


def test_the_results_of_tools_go_back(server: Running, client: anthropic.Anthropic) -> None:
    server.says(CALLS)
    first = client.messages.create(model="tiny", max_tokens=200, messages=HI, tools=TOOLS)
    calls = [block for block in first.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": calls[0].id, "content": "sunny"},
        {
            "type": "tool_result",
            "tool_use_id": calls[1].id,
            "content": [{"type": "text", "text": "no"}],
            "is_error": True,
        },
        {"type": "text", "text": "And now?"},
    ]
    messages = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    server.says("Sunny.")
    reply = client.messages.create(model="tiny", max_tokens=50, messages=messages, tools=TOOLS)
    assert reply.content[0].text == "Sunny."
    prompt = prompt_of(server)
    assert prompt.index("Zürich") < prompt.index("sunny") < prompt.index("Error: no") < prompt.index("And now?")


def test_a_last_message_of_the_assistant_is_gone_on_with(server: Running, client: anthropic.Anthropic) -> None:
    messages = [*HI, {"role": "assistant", "content": "The answer is ("}]
    client.messages.create(model="tiny", max_tokens=5, messages=messages)
    assert prompt_of(server).endswith("The answer is (")


@pytest.mark.parametrize(
    ("thinking", "switch"),
    [
        ({}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
    ],
)
def test_thinking_sets_what_templates_read(thinking: dict, switch: bool) -> None:
    body = MessagesBody.model_validate(
        {"messages": HI, "max_tokens": 1, "output_config": {"effort": "low"}, **thinking}
    )
    variables = chat_request(body).template_variables
    assert variables == {"enable_thinking": switch, "thinking": switch, "reasoning_effort": "low"}


def test_thinking_can_be_left_out(server: Running, client: anthropic.Anthropic) -> None:
    server.says("<think>secret</think>Yes")
    options = {
        "model": "tiny", "max_tokens": 99, "messages": HI,
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    }  # fmt: skip
    with client.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    for reply in (client.messages.create(**options), streamed):
        assert [block.type for block in reply.content] == ["thinking", "text"]
        assert (reply.content[0].thinking, reply.content[1].text) == ("", "Yes")


def test_tool_choice_in_core_s_shape() -> None:
    def of(choice: dict):
        body = {"messages": HI, "max_tokens": 1, "tools": TOOLS, "tool_choice": choice}
        return chat_request(MessagesBody.model_validate(body))

    assert of({"type": "auto"}).tool_choice == "auto"
    assert of({"type": "none"}).tool_choice == "none"
    assert of({"type": "any"}).tool_choice == "required"
    named = {"type": "function", "function": {"name": "weather"}}
    assert of({"type": "tool", "name": "weather"}).tool_choice == named
    assert of({"type": "auto"}).parallel_tool_calls is True
    assert of({"type": "auto", "disable_parallel_tool_use": True}).parallel_tool_calls is False


def test_a_format_in_core_s_shape() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = {"messages": HI, "max_tokens": 1, "output_config": {"format": {"type": "json_schema", "schema": schema}}}
    made = response_format(MessagesBody.model_validate(body))
    assert made == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_one_call_where_the_client_takes_one(server: Running, client: anthropic.Anthropic) -> None:
    server.says(CALLS)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    reply = client.messages.create(model="tiny", max_tokens=200, messages=HI, tools=TOOLS, tool_choice=choice)
    assert [block.type for block in reply.content] == ["text", "tool_use"]


def test_count_tokens_counts_the_prompt(server: Running, client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=HI, system="Be nice.", tools=TOOLS)
    client.messages.create(model="tiny", max_tokens=5, messages=HI, system="Be nice.", tools=TOOLS)
    assert counted.input_tokens == len(server.engine.requests[-1].prompt)
    assert len(server.engine.requests) == 1


def test_the_model(client: anthropic.Anthropic) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.type, listed.display_name) == ("tiny", "model", "tiny")
    assert client.models.retrieve("tiny") == listed


BAD = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"temperature": 101.0}, "temperature"),
    ({"n": 2}, "n"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "w", "input": "{}"}]}]},
        "messages[0].content[0].input",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "w", "input": {}}]}]},
        "messages[0] calls a tool",
    ),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "w"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0].name"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
    ({"thinking": {"type": "loud"}}, "thinking.type"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"messages": [{"role": "user", "content": "word " * 1500}]}, "context"),
]


@pytest.mark.parametrize(("change", "names"), BAD, ids=[f"{names}-{i}" for i, (_, names) in enumerate(BAD)])
def test_bad_input_is_400_and_names_its_place(server: Running, change: dict, names: str) -> None:
    body = {"model": "tiny", "messages": HI, "max_tokens": 5, **change}
    reply = httpx.post(f"{server.url}/v1/messages", json=body, verify=False)
    assert reply.status_code == 400, reply.text
    shape = reply.json()
    assert shape["type"] == "error"
    assert shape["error"]["type"] == "invalid_request_error"
    assert names in shape["error"]["message"]
    assert server.engine.requests == []


def test_errors_of_the_server_in_the_protocol_s_shape(server: Running, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="other", max_tokens=5, messages=HI)
    assert missing.value.body["error"]["type"] == "not_found_error"
    server.engine.overloaded = True
    with pytest.raises(anthropic.InternalServerError) as busy:
        client.messages.create(model="tiny", max_tokens=5, messages=HI)
    assert (busy.value.status_code, busy.value.body["error"]["type"]) == (529, "overloaded_error")
    assert busy.value.response.headers["retry-after"] == "3"
    wrong_method = httpx.get(f"{server.url}/v1/messages")
    assert (wrong_method.status_code, wrong_method.json()["type"]) == (405, "error")
    no_route = httpx.post(f"{server.url}/v1/messages/batches", json={})
    assert (no_route.status_code, no_route.json()["error"]["type"]) == (404, "not_found_error")


def test_an_error_on_the_way_is_the_last_event(server: Running) -> None:
    server.engine.error_after = 2
    body = {"max_tokens": 50, "messages": HI, "stream": True}
    reply = httpx.post(f"{server.url}/v1/messages", json=body, verify=False)
    assert reply.status_code == 200
    lines = [line for line in reply.text.splitlines() if line]
    assert lines[-2] == "event: error"
    error = json.loads(lines[-1].removeprefix("data: "))
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert "not finite" in error["error"]["message"]


def test_the_key_in_either_header(launch) -> None:
    body = {"max_tokens": 5, "messages": HI}
    with launch(api_key="sesame") as server:
        url = f"{server.url}/v1/messages"
        good = [
            {"x-api-key": "sesame"},
            {"authorization": "Bearer sesame"},
            {"x-api-key": "no", "authorization": "Bearer sesame"},
        ]
        assert [httpx.post(url, json=body, headers=headers).status_code for headers in good] == [200, 200, 200]
        bad = [{}, {"x-api-key": "sesam"}, {"x-api-key": ""}, {"authorization": "sesame"}, {"x-api-key": "schlüssel"}]
        for headers in bad:
            raw = {name: value.encode() for name, value in headers.items()}
            reply = httpx.post(url, json=body, headers=raw)
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "authentication_error"
