"""The real ollama client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import ollama
import pytest
from made_tokenizers import byte_level_folder
from running import Running
from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryTokenizer

from core.frontend.infill import KNOWN_MARKERS
from core.frontend.tokenizer import Tokenizer
from core.server.ollama.convert import chat_request, response_format, sampling_values
from core.server.ollama.schemas import ChatBody

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
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
def client(server: Running) -> Iterator[ollama.Client]:
    made = ollama.Client(host=server.url)
    yield made
    made._client.close()


def prompt_of(server: Running) -> str:
    return server.tokenizer.decode(list(server.engine.requests[-1].prompt), skip_special_tokens=False)


def test_chat(server: Running, client: ollama.Client) -> None:
    options = {"num_predict": 50, "temperature": 0, "repeat_penalty": 1.1, "seed": 3, "num_ctx": 8192, "min_p": 0.1}
    reply = client.chat(model="tiny:latest", messages=HI, options=options)
    assert (reply.message.role, reply.message.content, reply.done, reply.done_reason) == (
        "assistant", TEXT, True, "stop",
    )  # fmt: skip
    sampling = server.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.repetition_penalty) == (50, 0, 1.1)
    assert (server.engine.requests[0].seed, sampling.min_p) == (3, 0.1)
    assert reply.prompt_eval_count == len(server.engine.requests[0].prompt)
    assert reply.eval_count == len(server.tokenizer.encode(TEXT)) + 1
    assert reply.total_duration == reply.prompt_eval_duration + reply.eval_duration
    assert reply.created_at.endswith("Z")


def test_chat_streams_by_default_as_lines(server: Running) -> None:
    with httpx.stream("POST", f"{server.url}/api/chat", json={"model": "tiny", "messages": HI}) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert len(lines) > 5
    assert "".join(line["message"]["content"] for line in lines) == TEXT
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == "stop"
    assert "eval_count" not in lines[0]


def test_stream_is_the_whole_answer(server: Running, client: ollama.Client) -> None:
    server.says(f"<think>Hm</think>\n\n{CALLS}")
    options = {"model": "tiny", "messages": HI, "tools": TOOLS, "think": True}
    whole = client.chat(**options)
    parts = list(client.chat(**options, stream=True))
    assert whole.message.content == "".join(part.message.content for part in parts) == "\n\nLet me see."
    assert whole.message.thinking == "".join(part.message.thinking or "" for part in parts) == "Hm"
    streamed = [call for part in parts for call in part.message.tool_calls or ()]
    for calls in (whole.message.tool_calls, streamed):
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", {"city": "Zürich"}),
            ("weather", {"city": "Oslo"}),
        ]
    assert parts[-1].eval_count == whole.eval_count


def test_the_results_of_tools_go_back(server: Running, client: ollama.Client) -> None:
    server.says(CALLS)
    first = client.chat(model="tiny", messages=HI, tools=TOOLS)
    messages = [*HI, first.message, {"role": "tool", "content": "sunny", "tool_name": "weather"},
                {"role": "tool", "content": "rainy"}]  # fmt: skip
    server.says("Both.")
    assert client.chat(model="tiny", messages=messages, tools=TOOLS).message.content == "Both."
    prompt = prompt_of(server)
    assert prompt.index("Zürich") < prompt.index("sunny") < prompt.index("rainy")


def test_results_find_their_calls() -> None:
    call = {"function": {"name": "weather", "arguments": {}}}
    messages = [
        {"role": "assistant", "tool_calls": [{**call, "id": "a"}, {**call, "id": "b"}, call]},
        {"role": "tool", "content": "1", "tool_call_id": "b"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3", "tool_name": "weather"},
        {"role": "tool", "content": "4", "tool_name": "unknown"},
    ]
    made = chat_request(ChatBody(model="tiny", messages=messages)).messages
    assert [message.get("tool_call_id") for message in made[1:]] == ["b", "a", "call_2", None]
    assert made[-1]["name"] == "unknown"


def test_generate(server: Running, client: ollama.Client) -> None:
    reply = client.generate(model="tiny", prompt="Hi", system="Be nice.")
    assert (reply.response, reply.done_reason) == (TEXT, "stop")
    assert prompt_of(server).index("Be nice.") < prompt_of(server).index("Hi")
    parts = list(client.generate(model="tiny", prompt="Hi", stream=True, options={"num_predict": 3}))
    text = "".join(part.response for part in parts)
    assert text == server.tokenizer.decode(server.tokenizer.encode(TEXT, add_special_tokens=False)[:3])
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 3)


def test_raw_is_the_prompt_as_it_stands(server: Running, client: ollama.Client) -> None:
    server.says("<think>x</think>y")
    reply = client.generate(model="tiny", prompt="One two", raw=True)
    assert prompt_of(server) == "One two"
    assert reply.response == "<think>x</think>y"


def test_thinking(server: Running, client: ollama.Client) -> None:
    server.says("<think>Hm</think>Yes")
    reply = client.generate(model="tiny", prompt="Hi", think="high")
    assert (reply.thinking, reply.response) == ("Hm", "Yes")

    def variables(think: object) -> dict:
        return dict(chat_request(ChatBody(model="tiny", messages=HI, think=think)).template_variables)

    assert variables(None) == {}
    assert variables(False) == {"enable_thinking": False, "thinking": False}
    assert variables("low") == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}


def test_thinking_without_a_parser_is_refused(launch) -> None:
    with launch(parsers=False) as server:
        reply = httpx.post(f"{server.url}/api/chat", json={"model": "tiny", "messages": HI, "think": True})
        assert (reply.status_code, "think" in reply.json()["error"]) == (400, True)
        fine = {"model": "tiny", "messages": HI, "think": False, "stream": False}
        assert httpx.post(f"{server.url}/api/chat", json=fine).json()["message"]["content"] == TEXT


def test_logprobs(server: Running, client: ollama.Client) -> None:
    options = {"model": "tiny", "messages": HI, "logprobs": True, "top_logprobs": 2}
    whole = client.chat(**options)
    assert len(whole.logprobs) == whole.eval_count - 1  # all but the end of text
    assert (whole.logprobs[0].token, whole.logprobs[0].logprob) == (TEXT[: len(whole.logprobs[0].token)], -0.25)
    assert all(len(entry.top_logprobs) == 2 for entry in whole.logprobs)
    streamed = [entry for part in client.chat(**options, stream=True) for entry in part.logprobs or ()]
    assert streamed == whole.logprobs


@pytest.mark.parametrize("route", ["chat", "generate"])
def test_a_request_for_no_text_generates_nothing(server: Running, route: str) -> None:
    url = f"{server.url}/api/{route}"
    load = httpx.post(url, json={"model": "tiny"})
    assert (load.json()["done"], load.json()["done_reason"]) == (True, "load")
    unload = httpx.post(url, json={"model": "tiny", "keep_alive": 0, "stream": False})
    assert unload.json()["done_reason"] == "unload"
    assert server.engine.requests == []


def test_options() -> None:
    assert sampling_values({"num_predict": -1, "seed": -1, "top_k": 0, "num_ctx": 1, "stop": ["x"], "top_p": None}) == {
        "top_k": -1,
        "stop": ["x"],
    }
    assert sampling_values({"repeat_last_n": 64, "mirostat": 0, "tfs_z": 1.0, "typical_p": 1.0}) == {}
    assert sampling_values({"repeat_last_n": -1, "repeat_penalty": 1.2}) == {"repeat_penalty": 1.2}


def test_formats_in_core_s_shape() -> None:
    def of(wanted: object):
        return response_format(ChatBody(model="tiny", format=wanted))

    schema = {"type": "object"}
    assert of(None) is None
    assert of("") is None
    assert of("json") == {"type": "json_object"}
    assert of(schema) == {
        "type": "json_schema", "json_schema": {"name": "format", "schema": schema, "strict": True},
    }  # fmt: skip


def test_the_model(server: Running, client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert (listed.model, listed.details.families) == ("tiny", ["nothingforcausallm"])
    (loaded,) = client.ps().models
    assert (loaded.name, loaded.context_length) == ("tiny", 2048)
    shown = client.show("tiny")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo["nothingforcausallm.context_length"] == 2048
    assert "<|im_start|>" in shown.template
    assert httpx.get(f"{server.url}/api/version").json().keys() == {"version"}


BAD = [
    ({"model": None}, "model"),
    ({"model": "other"}, "other"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "messages[0].images"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": "{}"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"tools": [{"function": {}}]}, "tools[0].function.name"),
    ({"options": {"temperature": "hot"}}, "temperature"),
    ({"options": {"num_predict": 0}}, "num_predict"),
    ({"options": {"n": 3}}, "n is 3"),
    ({"options": {"mirostat": 2}}, "options.mirostat"),
    ({"options": {"repeat_last_n": 64, "repeat_penalty": 1.1}}, "options.repeat_last_n"),
    ({"think": "loud"}, "think"),
    ({"format": "yaml"}, "format"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 300}, "top_logprobs"),
    ({"messages": [{"role": "user", "content": "word " * 1500}]}, "context"),
]


@pytest.mark.parametrize(("change", "names"), BAD, ids=[f"{names}-{i}" for i, (_, names) in enumerate(BAD)])
def test_bad_input_is_refused_in_the_protocol_s_shape(server: Running, change: dict, names: str) -> None:
    body = {"model": "tiny", "messages": HI, **change}
    reply = httpx.post(f"{server.url}/api/chat", json=body, verify=False)
    assert reply.status_code == (404 if change.get("model") else 400), reply.text
    shape = reply.json()
    assert shape.keys() == {"error"}
    assert names in shape["error"]
    assert server.engine.requests == []


@pytest.mark.parametrize("change", [{"suffix": "x"}, {"template": "x"}, {"context": [1]}, {"images": ["AAAA"]}])
def test_what_generate_does_not_do(server: Running, change: dict) -> None:
    reply = httpx.post(f"{server.url}/api/generate", json={"model": "tiny", "prompt": "x", **change})
    assert reply.status_code == 400
    assert next(iter(change)) in reply.json()["error"]


def test_errors_of_the_server(server: Running, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        client.pull("other")
    assert (missing.value.status_code, "/api/pull" in missing.value.error) == (404, True)
    server.engine.overloaded = True
    with pytest.raises(ollama.ResponseError, match="queue is full") as busy:
        client.chat(model="tiny", messages=HI)
    assert busy.value.status_code == 429


def test_an_error_on_the_way_is_the_last_line(server: Running, client: ollama.Client) -> None:
    server.engine.error_after = 2
    with pytest.raises(ollama.ResponseError, match="not finite"):
        list(client.chat(model="tiny", messages=HI, stream=True))


def test_the_key(launch) -> None:
    with launch(api_key="sesame") as server:
        body = {"model": "tiny", "messages": HI}
        reply = httpx.post(f"{server.url}/api/chat", json=body, verify=False)
        assert (reply.status_code, reply.json().keys()) == (401, {"error"})
        reply = httpx.post(f"{server.url}/api/chat", json=body, headers={"authorization": "Bearer sesame"})
        assert reply.status_code == 200


def test_a_suffix_is_filled_up_to(launch, tmp_path: Path) -> None:
    markers = KNOWN_MARKERS[0]
    folder = byte_level_folder(tmp_path)
    made = LibraryTokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(
        [AddedToken(text, special=True) for text in (markers.prefix, markers.suffix, markers.middle)]
    )
    made.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    with launch(context_length=2048) as server:
        server.ctx.service = replace(server.ctx.service, tokenizer=tokenizer)
        body = {"model": "tiny", "prompt": "def f(", "suffix": "): pass", "stream": False}
        assert httpx.post(f"{server.url}/api/generate", json=body).json()["response"] == TEXT
        prompt = tokenizer.decode(server.engine.requests[-1].prompt.tolist(), skip_special_tokens=False)
        assert prompt == f"{markers.prefix}def f({markers.suffix}): pass{markers.middle}"
