"""What /v1/completions has beyond chat: best_of, echo without an answer, filling in, cut prompts, ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from made_tokenizers import byte_level_folder
from running import Running
from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryTokenizer

from core.engine.client import EngineRequest, TokenChunk
from core.engine.messages import TopLogprobs
from core.frontend.chat import ChatRenderer
from core.frontend.infill import KNOWN_MARKERS, InfillMarkers, infill_markers
from core.frontend.tokenizer import Tokenizer


@pytest.fixture
def server(launch):
    with launch(max_n=8) as running:
        yield running


def post(server: Running, **body: Any) -> dict[str, Any]:
    reply = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hello", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_best_of_returns_the_likeliest(server: Running) -> None:
    texts = ["one", "two two", "three", "four four four"]
    scores = [-2.0, -0.5, -1.0, -3.0]

    async def generate(request: EngineRequest):
        index = len(server.engine.requests) % len(texts)
        server.engine.requests.append(request)
        tokens = server.tokenizer.encode(texts[index], add_special_tokens=False)
        yield TokenChunk(tokens, "length", cached_tokens=0, logprobs=[TopLogprobs(scores[index], [], [])] * len(tokens))

    server.engine.generate = generate  # type: ignore[method-assign]
    reply = post(server, prompt=["a", "b"], n=2, best_of=4)
    assert [choice["text"] for choice in reply["choices"]] == ["two two", "three"] * 2
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    total = sum(len(server.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    assert reply["usage"]["completion_tokens"] == 2 * total  # what was drawn is what was computed
    assert len(server.engine.requests) == 8


def test_a_prompt_alone(server: Running) -> None:
    (choice,) = post(server, max_tokens=0, echo=True)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello", "length")
    assert server.engine.requests[-1].sampling.max_tokens == 1
    assert server.engine.requests[-1].sampling.prompt_logprobs is None
    post(server, max_tokens=0, echo=True, logprobs=2)
    assert server.engine.requests[-1].sampling.prompt_logprobs == 2


def test_a_prompt_is_cut_only_if_asked(server: Running) -> None:
    ids = list(range(10, 310))
    refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": ids, "max_tokens": 5})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    reply = post(server, prompt=ids, max_tokens=5, truncate_prompt_tokens=-1)
    assert server.engine.requests[-1].prompt.tolist() == ids[-251:]
    assert reply["usage"]["prompt_tokens"] == 251
    post(server, prompt=ids, max_tokens=5, truncate_prompt_tokens=7)
    assert server.engine.requests[-1].prompt.tolist() == ids[-7:]
    post(server, prompt=[5, 6], truncate_prompt_tokens=7)
    assert server.engine.requests[-1].prompt.tolist() == [5, 6]


def test_token_ids(server: Running) -> None:
    server.says("Hi!")
    (choice,) = post(server, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == server.tokenizer.encode("Hello")
    assert server.tokenizer.decode(choice["token_ids"]) == "Hi!"
    body = {"prompt": "Hello", "stream": True, "return_token_ids": True}
    reply = httpx.post(f"{server.url}/v1/completions", json=body)
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    streamed = [token for event in events for token in event["choices"][0]["token_ids"]]
    assert streamed == choice["token_ids"]
    assert [event for event in events if "prompt_token_ids" in event["choices"][0]] == events[:1]


def test_ids_times_and_salts_reach_the_engine(server: Running) -> None:
    reply = post(server, rid="mine", timeout=2.5, cache_salt="a", extra_key="b")
    assert reply["id"] == "mine"
    request = server.engine.requests[-1]
    assert request.timeout_s == 2.5
    assert request.namespace.salt == "a\0b"


@pytest.mark.parametrize("markers", KNOWN_MARKERS, ids=lambda markers: markers.prefix)
def test_filling_in(server: Running, tmp_path: Path, markers: InfillMarkers) -> None:
    """The suffix goes where the vocabulary's markers say, special tokens in texts stay texts of the parts."""
    assert infill_markers(server.tokenizer) is None
    folder = byte_level_folder(tmp_path)
    made = LibraryTokenizer.from_file(str(folder / "tokenizer.json"))
    names = [text for text in (markers.prefix, markers.suffix, markers.middle) if text]
    made.add_special_tokens([AddedToken(text, special=True) for text in names])
    made.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert infill_markers(tokenizer) == markers
    service = server.ctx.service
    object.__setattr__(service, "tokenizer", tokenizer)
    object.__setattr__(service, "renderer", ChatRenderer(tokenizer))
    post(server, prompt="def f(", suffix="):\n    pass")
    ids = {text: tokenizer.id_of(text) for text in names}
    before = tokenizer.encode("def f(", add_special_tokens=False)
    after = tokenizer.encode("):\n    pass", add_special_tokens=False)
    if markers.suffix_first:
        wanted = [ids[markers.suffix], *after, ids[markers.prefix], *before]
    else:
        wanted = [ids[markers.prefix], *before, ids[markers.suffix], *after, ids[markers.middle]]
    assert server.engine.requests[-1].prompt.tolist() == wanted
    refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": [1, 2], "suffix": "x"})
    assert refused.json()["error"]["param"] == "prompt"
