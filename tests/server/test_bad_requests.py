"""Every mistake of a client is answered in OpenAI's error shape, with the field named."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from running import Running

HI = [{"role": "user", "content": "Hi"}]


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HI, **changes}


@pytest.fixture(scope="module")
def shared(launch):
    with launch(max_n=4, max_body_bytes=20_000) as running:
        yield running


def check(reply: httpx.Response, status: int, param: str | None, says: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    (error,) = reply.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert says in error["message"]
    return error


CHAT_MISTAKES: list[tuple[dict[str, Any], str | None, str]] = [
    (chat(temperature="0.5"), "temperature", "number"),
    (chat(temperature=-0.1), "temperature", "-0.1"),
    (chat(temperature=True), "temperature", "True"),
    (chat(max_tokens=0), "max_tokens", "at least 1"),
    (chat(max_completion_tokens=-3), "max_completion_tokens", "-3"),
    (chat(max_tokens=1.5), "max_tokens", "1.5"),
    (chat(top_p=0), "top_p", "0.0"),
    (chat(top_k=-2), "top_k", "-2"),
    (chat(top_k=2**64), "top_k", "at most"),
    (chat(min_tokens=2**64), "min_tokens", "at most"),
    (chat(max_tokens=2**64), "max_tokens", "at most"),
    (chat(n=0), "n", "at least 1"),
    (chat(n=5), "n", "at most 4"),
    (chat(seed=2**70), "seed", "64-bit"),
    (chat(stop=["a", 1]), "stop[1]", "string"),
    (chat(stop=[""]), "stop", "non-empty"),
    (chat(stop=["x"] * 33), "stop", "at most 32"),
    (chat(stop_regex=["a", "("]), "stop_regex[1]", "no regular expression"),
    (chat(stop_regex="a*"), "stop_regex[0]", "every text"),
    (chat(stop_regex=r"(a)\1"), "stop_regex[0]", "not supported"),
    (chat(stop_regex=""), "stop_regex", "non-empty"),
    (chat(stop_regex="a" * 257), "stop_regex", "at most 256"),
    (chat(stop_regex=["a"] * 33), "stop_regex", "at most 32"),
    (chat(logit_bias={"x": 1}), "logit_bias.x", "integer"),
    (chat(logit_bias={"999999": 1}), "logit_bias", "vocabulary"),
    (chat(stop_token_ids=[400]), "stop_token_ids", "vocabulary"),
    (chat(top_logprobs=3), "top_logprobs", "logprobs"),
    (chat(logprobs=True, top_logprobs=65), "top_logprobs", "64"),
    (chat(stream="yes"), "stream", "boolean"),
    (chat(messages=[]), "messages", "empty"),
    (chat(messages="hi"), "messages", "array"),
    (chat(messages=None), "messages", "array"),
    ({"model": "tiny"}, "messages", "missing"),
    (chat(messages=["hi"]), "messages[0]", "object"),
    (chat(messages=[{"role": "user"}]), "messages[0].content", "missing"),
    (chat(messages=[*HI, {"role": "user", "content": None}]), "messages[1].content", "missing"),
    (chat(messages=[{"content": "x"}]), "messages[0].role", "None"),
    (chat(messages=[{"role": "robot", "content": "x"}]), "messages[0].role", "robot"),
    (chat(messages=[{"role": "user", "content": []}]), "messages[0].content", "text parts"),
    (chat(messages=[{"role": "user", "content": 3}]), "messages[0].content", "string"),
    (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        "messages[0].content[0].type", "text only",
    ),
    (
        chat(messages=[{"role": "user", "content": [{"type": "text"}]}]),
        "messages[0].content[0].text", "string",
    ),
    (chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
     "messages[0].tool_calls[0].function.name", "missing"),
    (chat(messages=[{"role": "user", "content": "x", "tool_calls": [{}]}]), "messages[0].tool_calls", "assistant"),
    (chat(tools=[{"type": "function"}]), "tools[0].function.name", "missing"),
    (chat(tools=[{"type": "magic", "function": {"name": "f"}}]), "tools[0].type", "function"),
    (chat(tool_choice="required"), "tool_choice", "no tools"),
    (chat(response_format={"type": "yaml"}), "response_format.type", "yaml"),
    (chat(guided_json={}, regex="a"), "regex", "cannot be given together"),
    (chat(use_beam_search=True), "use_beam_search", "not supported"),
    (chat(prompt_logprobs=-1), "prompt_logprobs", "whole vocabulary"),
    (chat(prompt_logprobs=65), "prompt_logprobs", "64"),
    (chat(truncate_prompt_tokens=0), "truncate_prompt_tokens", "leaves 0"),
    (chat(timeout=0), "timeout", "greater than 0"),
    (chat(rid=["a", "b"]), "rid", "2 for 1"),
    (chat(functions=[{"name": "f"}]), "functions", "use tools"),
    (chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs", "messages"),
    (chat(continue_final_message=True), "continue_final_message", "assistant"),
    (chat(messages=[{"role": "user", "content": "x " * 500}]), "messages", "at most 255"),
    (chat(max_tokens=256), "messages", "together"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), CHAT_MISTAKES, ids=lambda value: str(value)[:40])
def test_chat_mistakes(shared: Running, body: dict, param: str, says: str) -> None:
    before = len(shared.engine.requests)
    error = check(httpx.post(f"{shared.url}/v1/chat/completions", json=body), 400, param, says)
    assert error["type"] == "invalid_request_error"
    assert len(shared.engine.requests) == before  # nothing reached the engine


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
        ({"prompt": [1, 999]}, "prompt", "999"),
        ({"prompt": [-1]}, "prompt", "-1"),
        ({"prompt": [1.5]}, "prompt[0]", "1.5"),
        ({}, "prompt", "missing"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "no markers"),
        ({"prompt": "x", "best_of": 1, "n": 2}, "best_of", "less than n"),
        ({"prompt": "x", "best_of": 5}, "best_of", "at most 4"),
        ({"prompt": "x", "best_of": 3, "stream": True}, "best_of", "streamed"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "x", "rid": ""}, "rid", "empty"),
        ({"prompt": "x", "logprobs": 65}, "logprobs", "64"),
        ({"prompt": "x " * 600}, "prompt", "at most 255"),
    ],
)
def test_completion_mistakes(shared: Running, body: dict, param: str, says: str) -> None:
    check(httpx.post(f"{shared.url}/v1/completions", json=body), 400, param, says)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "text", "either"),
        ({"text": "a", "input_ids": [1]}, "text", "either"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 0}}, "max_new_tokens", "at least 1"),
        ({"text": "a", "sampling_params": {"temperature": "hot"}}, "temperature", "hot"),
        ({"text": "a", "sampling_params": {"temperature": 10**400}}, "temperature", "larger"),
        ({"text": "a", "sampling_params": {"logit_bias": {"5": 10**400}}}, "logit_bias", "numbers"),
        ({"text": "a", "sampling_params": {"top_k": 10**30}}, "top_k", "at most"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 2**63}, "logprob_start_len", "less than"),
        ({"text": "a", "sampling_params": {"json_schema": "{"}}, "json_schema", "no JSON"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params", "1 for 2"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid", "1 for 2"),
        ({"input_ids": [[1], []]}, "input_ids[1]", "empty"),
    ],
)
def test_generate_mistakes(shared: Running, body: dict, param: str, says: str) -> None:
    check(httpx.post(f"{shared.url}/generate", json=body), 400, param, says)


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"{", "invalid_json", "not valid JSON"),
        (b"", "invalid_json", "not valid JSON"),
        (b'{"messages": "\xff\xfe"}', "invalid_utf8", "UTF-8"),
        (b'{"a": 1} x', "invalid_json", "not valid JSON"),
        (b"[" * 5000, "invalid_json", "not valid JSON"),
    ],
)
def test_bodies_that_are_no_json(shared: Running, raw: bytes, code: str, says: str) -> None:
    for route in ("/v1/chat/completions", "/v1/completions", "/generate", "/tokenize", "/detokenize"):
        error = check(httpx.post(shared.url + route, content=raw), 400, None, says)
        assert error["code"] == code


def test_body_of_another_kind(shared: Running) -> None:
    check(httpx.post(f"{shared.url}/v1/chat/completions", content=b"[1]"), 400, None, "the body")


def test_body_too_large(shared: Running) -> None:
    big = chat(messages=[{"role": "user", "content": "x" * 30_000}])
    check(httpx.post(f"{shared.url}/v1/chat/completions", json=big), 413, None, "20000 bytes")

    def unannounced():
        for _ in range(30):
            yield b"x" * 1000

    check(httpx.post(f"{shared.url}/v1/chat/completions", content=unannounced()), 413, None, "20000 bytes")


def test_lone_surrogate_is_the_clients_mistake(shared: Running) -> None:
    raw = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    reply = httpx.post(f"{shared.url}/v1/chat/completions", content=raw)
    assert reply.status_code == 400


def test_unknown_route_and_method(shared: Running) -> None:
    check(httpx.get(f"{shared.url}/v2/nothing"), 404, None, "/v2/nothing")
    check(httpx.get(f"{shared.url}/v1/chat/completions"), 405, None, "GET")


def test_template_refusal(launch, tokenizer, tmp_path) -> None:
    from made_tokenizers import byte_level_folder

    from core.frontend.chat import ChatRenderer
    from core.frontend.tokenizer import Tokenizer

    strict = Tokenizer.load(byte_level_folder(tmp_path, chat_template="{{ raise_exception('no system role') }}"))
    with launch() as server:
        object.__setattr__(server.ctx.service, "renderer", ChatRenderer(strict))
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
        check(reply, 400, "messages", "no system role")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/completions", {"prompt": "x"}),
        ("/generate", {"text": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": HI, "max_tokens": 3}),
        ("/v1/messages/count_tokens", {"messages": HI}),
        ("/api/chat", {"model": "tiny", "messages": HI}),
        ("/api/generate", {"model": "tiny", "prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_null_counts_as_not_given_in_every_optional_field(shared: Running, route: str, body: dict[str, Any]) -> None:
    spec = httpx.get(f"{shared.url}/openapi.json").json()
    fields = spec["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    reply = httpx.post(shared.url + route, json={**dict.fromkeys(fields), **body})
    assert reply.status_code == 200, reply.text


def test_zero_is_another_way_to_turn_top_k_off(shared: Running) -> None:
    assert httpx.post(f"{shared.url}/v1/chat/completions", json=chat(top_k=0)).status_code == 200
    assert shared.engine.requests[-1].sampling.top_k == -1
