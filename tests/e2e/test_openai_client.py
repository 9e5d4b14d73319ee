"""The real `openai` client against a real server process with a real (random) model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.process import ServerProcess, wait_until

MESSAGES: list[Any] = [{"role": "user", "content": "Hello, how are you today?"}]


@pytest.fixture
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_models(client: OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_chat_whole_and_streamed_are_the_same_text(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


async def test_async_clients_at_once_get_what_one_alone_gets(server: ServerProcess) -> None:
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:

        async def ask(seed: int) -> str:
            reply = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=24, temperature=1.0, seed=seed
            )
            return reply.choices[0].message.content or ""

        alone = [await ask(seed) for seed in range(6)]
        together = await asyncio.gather(*(ask(seed) for seed in range(6)))
    assert alone == together
    assert len(set(alone)) > 1


def test_completions_logprobs_echo_the_greedy_choice(client: OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="One two three", max_tokens=8, temperature=0, logprobs=3)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.token_logprobs) == 8
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert chosen == pytest.approx(max(top.values()), abs=1e-5)


def test_n_samples(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=16, temperature=1.5, n=3, seed=5)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len(set(texts)) > 1


def test_two_turns_report_the_cached_tokens_that_were_computed_by_hand(server: ServerProcess, client: OpenAI) -> None:
    def ids(messages: list[Any]) -> list[int]:
        reply = httpx.post(server.url + "/tokenize", json={"messages": messages, "add_generation_prompt": True})
        tokens: list[int] = reply.json()["tokens"]
        return tokens

    page = 4
    first = [{"role": "user", "content": "A question nobody asked before: one, two, three, four?"}]
    reply = httpx.post(
        server.url + "/generate",
        json={"input_ids": ids(first), "sampling_params": {"max_new_tokens": 21, "temperature": 0, "ignore_eos": True}},
    ).json()
    answer = reply["text"]
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    # KV exists for the prompt and all but the last generated token; whole pages of what both prompts share count.
    known, asked = ids(first) + reply["output_ids"][:-1], ids(second)
    shared = next((i for i, (a, b) in enumerate(zip(known, asked, strict=False)) if a != b), len(known))
    expected = min(shared, len(asked) - 1) // page * page
    assert expected > len(ids(first)) // page * page - page  # generated tokens are part of it, or the test says nothing
    usage = client.chat.completions.create(model="tiny", messages=second, max_tokens=4, temperature=0).usage
    assert usage is not None
    assert usage.prompt_tokens == len(asked)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == expected


def test_stop_strings_never_leak_and_count_as_stops(server: ServerProcess, client: OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="abc", max_tokens=60, temperature=0).choices[0].text
    stop = whole[10:13]
    at = whole.index(stop)
    before = server.metric("core_requests_total", 'finish_reason="stop"')
    chunks = list(
        client.completions.create(model="tiny", prompt="abc", max_tokens=60, temperature=0, stop=stop, stream=True)
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole[:at]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert server.metric("core_requests_total", 'finish_reason="stop"') == before + 1


def test_closing_a_stream_frees_the_request(server: ServerProcess, client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0}
    client.chat.completions.create(**options, max_tokens=1)
    before = server.metric("core_requests_total", 'finish_reason="abort"')
    stream = client.chat.completions.create(**options, max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    wait_until(
        lambda: server.metric("core_requests_total", 'finish_reason="abort"') == before + 1, what="one more abort"
    )
    wait_until(lambda: running(server) == 0, what="no running request")


def running(server: ServerProcess) -> float:
    """The gauge of running requests."""
    return server.metric("core_running_requests")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"n": 1000}, "n"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "context"),
    ],
)
def test_bad_input_is_400_and_names_the_field(server: ServerProcess, change: dict[str, Any], names: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4} | change
    reply = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert names in error["message"] or names in (error["param"] or ""), error
    assert error["type"] == "invalid_request_error"


def test_unknown_model_is_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)


@pytest.mark.parametrize("body", [b"{", b'{"model": "\xff\xfe"}', b"[1, 2]", b""])
def test_bodies_that_are_no_json_object(server: ServerProcess, body: bytes) -> None:
    reply = httpx.post(server.url + "/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]
