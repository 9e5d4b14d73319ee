"""The real openai client against a real server."""

from __future__ import annotations

import httpx
import openai
import pytest
from running import Running

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
HI = [{"role": "user", "content": "Hi"}]
TEXT = "Hello, world 🙂!"


@pytest.fixture
def client(server: Running):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_chat(server: Running, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, temperature=0, max_tokens=50)
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    ids = server.tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    (request,) = server.engine.requests
    assert list(request.prompt) == ids
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.n) == (0, 50, 1)
    assert reply.usage.prompt_tokens == len(ids)
    assert reply.usage.completion_tokens == len(server.tokenizer.encode(TEXT)) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == len(ids) // 16 * 16


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == TEXT
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_continuous_usage(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(model="tiny", messages=HI, stream=True, stream_options=options))
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts)
    assert counts[-1] > counts[1]


async def test_async_client(server: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        reply = await client.chat.completions.create(model="tiny", messages=HI)
        assert reply.choices[0].message.content == TEXT
        stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == TEXT


def test_several_samples(server: Running, client: openai.OpenAI) -> None:
    texts = ["one", "two", "three"]
    server.engine.script = lambda request: [*server.tokenizer.encode(texts[request.seed - 7]), 2]
    reply = client.chat.completions.create(model="tiny", messages=HI, n=3, seed=7)
    assert [(c.index, c.message.content) for c in reply.choices] == list(enumerate(texts))
    got = ["", "", ""]
    for chunk in client.chat.completions.create(model="tiny", messages=HI, n=3, seed=7, stream=True):
        for choice in chunk.choices:
            got[choice.index] += choice.delta.content or ""
    assert got == texts
    assert reply.usage.completion_tokens == sum(len(server.tokenizer.encode(t)) + 1 for t in texts)


def test_stop_string_cancels_the_rest(server: Running, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, stop=["wor"])
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Hello, ", "stop")
    assert reply.choices[0].matched_stop == "wor"
    assert (server.engine.cancelled, server.engine.running) == (1, 0)


def test_length(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=2, max_tokens=50)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 2


def test_chat_logprobs(server: Running, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == TEXT
    assert all(entry.logprob == -0.25 and len(entry.top_logprobs) == 2 for entry in content)
    stream = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2, stream=True)
    streamed = [e for c in stream for choice in c.choices if choice.logprobs for e in choice.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


def test_tool_calls(server: Running, client: openai.OpenAI) -> None:
    server.says('<think>hm</think>Sure.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>')
    reply = client.chat.completions.create(model="tiny", messages=HI, tools=TOOLS)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "K\\u00f6ln"}')
    assert (choice.message.content, choice.message.reasoning_content) == ("Sure.", "hm")
    assert "You may call" in server.tokenizer.decode(server.engine.requests[0].prompt.tolist(), False)
    # The calls and their results go back into the next turn.
    turn = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}]
    client.chat.completions.create(model="tiny", messages=turn, tools=TOOLS)
    prompt = server.tokenizer.decode(server.engine.requests[1].prompt.tolist(), False)
    assert '<tool_call>{"arguments": {"city": "Köln"}, "name": "weather"}</tool_call>' in prompt
    assert "<think>hm</think>" in prompt


def test_tool_calls_streamed(server: Running, client: openai.OpenAI) -> None:
    server.says('<tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call>')
    with client.chat.completions.stream(model="tiny", messages=HI, tools=TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"a": 1}')
    assert call.id.startswith("call_")
    assert final.choices[0].finish_reason == "tool_calls"


def test_tool_choice_none_means_no_tools(server: Running, client: openai.OpenAI) -> None:
    server.says('<tool_call>{"name": "weather", "arguments": {}}</tool_call>')
    reply = client.chat.completions.create(model="tiny", messages=HI, tools=TOOLS, tool_choice="none")
    assert reply.choices[0].message.tool_calls is None
    assert "weather" in reply.choices[0].message.content
    assert "You may call" not in server.tokenizer.decode(server.engine.requests[0].prompt.tolist(), False)


def test_reasoning_opened_by_the_template(server: Running, client: openai.OpenAI) -> None:
    server.says("hm</think>yes")
    reply = client.chat.completions.create(
        model="tiny", messages=HI, extra_body={"chat_template_kwargs": {"open_thinking": True}}
    )
    assert (reply.choices[0].message.reasoning_content, reply.choices[0].message.content) == ("hm", "yes")
    server.says("<think>hm</think>yes")
    reply = client.chat.completions.create(model="tiny", messages=HI, extra_body={"separate_reasoning": False})
    assert reply.choices[0].message.content == "<think>hm</think>yes"


def test_continue_final_message(server: Running, client: openai.OpenAI) -> None:
    messages = [*HI, {"role": "assistant", "content": "The answer is"}]
    client.chat.completions.create(model="tiny", messages=messages, extra_body={"continue_final_message": True})
    assert server.tokenizer.decode(server.engine.requests[0].prompt.tolist(), False).endswith("The answer is")


def test_completions(server: Running, client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="Once", max_tokens=50, echo=True)
    assert reply.choices[0].text == "Once" + TEXT
    ids = server.tokenizer.encode("Once")
    for prompt, count in ((ids, 1), ([ids, ids], 2), (["a", "b", "c"], 3)):
        reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=50, n=2)
        assert [(c.index, c.text) for c in reply.choices] == [(i, TEXT) for i in range(2 * count)]
    got: dict[int, str] = {}
    for chunk in client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=50, stream=True, echo=True):
        for choice in chunk.choices:
            got[choice.index] = got.get(choice.index, "") + choice.text
    assert got == {0: "a" + TEXT, 1: "b" + TEXT}


def test_completions_default_is_16_tokens(server: Running, client: openai.OpenAI) -> None:
    client.completions.create(model="tiny", prompt="x")
    assert server.engine.requests[0].sampling.max_tokens == 16


def test_completions_logprobs(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="x", max_tokens=50, logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "\ufffd" in token or TEXT[offset:].startswith(token)
    reply = client.completions.create(model="tiny", prompt="x", max_tokens=50, logprobs=0)
    assert reply.choices[0].logprobs.top_logprobs is None


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == ("tiny", 256)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_the_clients_own_types(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=HI, temperature=-1)
    assert wrong.value.param == "temperature"
    server.engine.overloaded = True
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as busy:
            client.chat.completions.create(model="tiny", messages=HI, stream=stream)
        assert busy.value.response.headers["retry-after"] == "3"


def test_engine_death(server: Running, client: openai.OpenAI) -> None:
    server.engine.fail_after = 0
    with pytest.raises(openai.InternalServerError) as dead:
        client.chat.completions.create(model="tiny", messages=HI)
    assert dead.value.status_code == 503
    server.engine.fail_after = 3
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    with pytest.raises(openai.APIError, match="killed"):
        list(stream)


def test_api_key(launch) -> None:
    with launch(api_key="geheim-ü") as server:
        for key, right in (("geheim-ü", True), ("wrong", False), ("geheim", False)):
            header = {"Authorization": f"Bearer {key}".encode()}
            status = httpx.get(f"{server.url}/v1/models", headers=header).status_code
            assert status == (200 if right else 401)
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(server.url + path).status_code == 200
        reply = httpx.get(f"{server.url}/v1/models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")


def test_checkpoint_recommends_sampling(launch) -> None:
    with launch(defaults={"temperature": 0.6, "top_k": 20}) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            client.chat.completions.create(model="tiny", messages=HI, top_p=0.5)
            client.chat.completions.create(model="tiny", messages=HI, temperature=1.5)
        first, second = (request.sampling for request in server.engine.requests)
        assert (first.temperature, first.top_k, first.top_p) == (0.6, 20, 0.5)
        assert (second.temperature, second.top_k) == (1.5, 20)
        # The tokenizer ends texts with an id that this engine does not know as an end.
        assert first.stop_token_ids == (0,)
