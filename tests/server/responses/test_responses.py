"""The real openai client against a real server: answers, streams, items, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from running import Running

from core.server.responses.items import chat_request, input_items, response_format
from core.server.responses.schemas import ResponsesBody

TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}]
TEXT = "Hello, world 🙂!"
CALLS = (
    'Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
)
KINDS = {
    "message": ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
                "output_item.done"],
    "reasoning": ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
                  "content_part.done", "output_item.done"],
    "summary": ["output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
                "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"],
    "function_call": ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
                      "output_item.done"],
}  # fmt: skip


@pytest.fixture
def server(roomy_server: Running) -> Running:
    return roomy_server


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def prompt_of(server: Running) -> str:
    return server.tokenizer.decode(list(server.engine.requests[-1].prompt), skip_special_tokens=False)


def plain(items: list) -> list[dict]:
    """Items without what differs between two of the same, and what the client adds."""
    exclude = {"id": True, "call_id": True, "parsed_arguments": True, "content": {"__all__": {"parsed": True}}}
    return [item.model_dump(exclude=exclude, exclude_none=True, warnings=False) for item in items]


def test_response(server: Running, client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="tiny", input="Hi", instructions="Be nice.", temperature=0, max_output_tokens=50, metadata={"a": "b"}
    )
    assert (reply.output_text, reply.status, reply.object, reply.model) == (TEXT, "completed", "response", "tiny")
    (item,) = reply.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert (reply.temperature, reply.metadata, reply.store, reply.error) == (0, {"a": "b"}, False, None)
    (request,) = server.engine.requests
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0, 50)
    assert prompt_of(server).index("Be nice.") < prompt_of(server).index("Hi")
    usage = reply.usage
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens) == (
        len(request.prompt), len(request.prompt) // 16 * 16,
    )  # fmt: skip
    assert usage.output_tokens == len(server.tokenizer.encode(TEXT)) + 1
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_stream_ends_with_the_whole_response(server: Running, client: openai.OpenAI) -> None:
    server.says(f"<think>Hm, well</think>\n\n{CALLS}")
    options = {"model": "tiny", "input": "Hi", "tools": TOOLS}
    whole = client.responses.create(**options)
    with client.responses.stream(**options) as stream:
        streamed = stream.get_final_response()
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert whole.output_text == "\n\nLet me see."
    assert [part.text for part in whole.output[0].content] == ["Hm, well"]
    assert [json.loads(item.arguments) for item in whole.output[2:]] == [{"city": "Zürich"}, {"city": "Oslo"}]
    assert len({item.call_id for item in whole.output[2:]}) == 2
    assert plain(streamed.output) == plain(whole.output)
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    assert streamed.usage == whole.usage


@pytest.mark.parametrize("summary", [None, "auto"])
def test_events_in_order(server: Running, client: openai.OpenAI, summary: str | None) -> None:
    server.says(f"<think>Hm, well</think>{CALLS}")
    events = list(
        client.responses.create(model="tiny", input="Hi", tools=TOOLS, stream=True, reasoning={"summary": summary})
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] == "completed"
    final = events[-1].response
    for index, item in enumerate(final.output):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        unique = list(dict.fromkeys(event.type.removeprefix("response.") for event in own))
        assert unique == KINDS["summary" if item.type == "reasoning" and summary else item.type]
        assert {getattr(event, "item_id", item.id) for event in own} == {item.id}
        assert own[-1].item == item
        deltas = "".join(event.delta for event in own if event.type.endswith(".delta"))
        done = next(event for event in own if event.type.endswith((".text.done", "_text.done", "arguments.done")))
        assert deltas == (done.arguments if item.type == "function_call" else done.text)
    if summary:
        assert [part.text for part in final.output[0].summary] == ["Hm, well"]


def test_a_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="tiny", input="Hi", max_output_tokens=3)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert reply.output[0].status == "incomplete"
    events = list(client.responses.create(model="tiny", input="Hi", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_an_answer_without_a_word(server: Running, client: openai.OpenAI) -> None:
    server.says("")
    reply = client.responses.create(model="tiny", input="Hi")
    assert ([item.type for item in reply.output], reply.output_text) == (["message"], "")


def test_logprobs(server: Running, client: openai.OpenAI) -> None:
    options = {"model": "tiny", "input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = client.responses.create(**options)
    logprobs = whole.output[0].content[0].logprobs
    assert len(logprobs) == whole.usage.output_tokens - 1
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)
    events = list(client.responses.create(**options, stream=True))
    streamed = [entry.token for e in events if e.type == "response.output_text.delta" for entry in e.logprobs]
    assert streamed == [entry.token for entry in logprobs]


def test_the_results_of_calls_go_back(server: Running, client: openai.OpenAI) -> None:
    server.says(f"<think>Hm</think>{CALLS}")
    first = client.responses.create(model="tiny", input="Hi", tools=TOOLS)
    calls = [item for item in first.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    server.says("Sunny.")
    items = [{"role": "user", "content": "Hi"}, *first.output, *results]
    reply = client.responses.create(model="tiny", input=items, tools=TOOLS)
    assert reply.output_text == "Sunny."
    assert prompt_of(server).index("Let me see.") < prompt_of(server).index("Zürich") < prompt_of(server).index("sunny")


def messages(items: str | list, **fields: object) -> list[dict]:
    body = ResponsesBody.model_validate({"input": items, **fields})
    return [dict(message) for message in chat_request(body, [], input_items(body.input)).messages]


def test_items_of_one_turn_are_one_message() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "w", "arguments": "{}"}
    made = messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
            call,
            {**call, "call_id": "2"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "r2"}]},
            {"type": "function_call_output", "call_id": "1", "output": "r1"},
            {"type": "reasoning", "encrypted_content": "x", "summary": []},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "left"}]},
        ],
        instructions="Be nice.",
    )
    assert [message["role"] for message in made] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert made[0]["content"] == "Be nice.\n\nBe brief."
    assert made[1]["content"] == "a\nb"
    assert (made[2]["content"], made[2]["reasoning_content"]) == ("c", "hm")
    assert [call["id"] for call in made[2]["tool_calls"]] == ["1", "2"]
    assert [(m["tool_call_id"], m["name"], m["content"]) for m in made[3:5]] == [("2", "w", "r2"), ("1", "w", "r1")]
    assert made[5] == {"role": "assistant", "content": "", "reasoning_content": "left"}


def test_reasoning_and_tool_choice_in_core_s_shape() -> None:
    two = [*TOOLS, {**TOOLS[0], "name": "clock"}]

    def of(**fields: object):
        body = ResponsesBody.model_validate({"input": "Hi", "tools": two, **fields})
        return chat_request(body, [], input_items(body.input))

    assert of().template_variables == {}
    assert of(reasoning={"effort": "none"}).template_variables == {"enable_thinking": False, "thinking": False}
    on = {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    assert of(reasoning={"effort": "low"}).template_variables == on
    assert of(tool_choice="required").tool_choice == "required"
    named = {"type": "function", "function": {"name": "clock"}}
    assert of(tool_choice={"type": "function", "name": "clock"}).tool_choice == named
    allowed = of(
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]}
    )
    assert (allowed.tool_choice, [tool["function"]["name"] for tool in allowed.tools]) == ("auto", ["clock"])
    assert of().tools[0]["function"] == {"name": "weather", "parameters": TOOLS[0]["parameters"], "strict": False}


def test_formats_in_core_s_shape() -> None:
    def of(wanted: dict | None):
        return response_format(ResponsesBody.model_validate({"input": "Hi", "text": {"format": wanted}}))

    schema = {"type": "object"}
    assert of(None) is None
    assert of({"type": "text"}) == {"type": "text"}
    assert of({"type": "json_object"}) == {"type": "json_object"}
    assert of({"type": "json_schema", "name": "x", "schema": schema, "strict": True}) == {
        "type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True},
    }  # fmt: skip


BAD = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "x", "name": "w"}]}, "input[0].arguments"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tool_choice": "perhaps"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ({"include": ["everything"]}, "include"),
    ({"top_logprobs": 1000}, "top_logprobs"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1.0}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"n": 2}, "n"),
    ({"truncation": "auto"}, "truncation"),
    ({"store": True}, "store"),
    ({"background": True}, "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"reasoning": {"summary": "loud"}}, "reasoning.summary"),
    ({"input": "word " * 1500}, "input"),
]


@pytest.mark.parametrize(("change", "names"), BAD, ids=[f"{names}-{i}" for i, (_, names) in enumerate(BAD)])
def test_bad_input_is_400_and_names_its_place(server: Running, change: dict, names: str) -> None:
    body = {"model": "tiny", "input": "Hi", **change}
    reply = httpx.post(f"{server.url}/v1/responses", json=body, verify=False)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(names), error
    assert server.engine.requests == []


def test_errors_of_the_server(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="other"):
        client.responses.create(model="other", input="Hi")
    with pytest.raises(openai.NotFoundError, match="--response-store"):
        client.responses.retrieve("resp_1")
    server.engine.overloaded = True
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="queue is full"):
            client.responses.create(model="tiny", input="Hi", stream=stream)


def test_an_error_on_the_way_fails_the_response(server: Running, client: openai.OpenAI) -> None:
    server.engine.error_after = 2
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    assert events[-1].type == "response.failed"
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
    assert "not finite" in events[-1].response.error.message
    with pytest.raises(openai.InternalServerError, match="not finite"):
        client.responses.create(model="tiny", input="Hi")
