"""Log-probabilities of prompts over HTTP: the same numbers on every route, and they are transformers'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.testing.checkpoint import write_tiny_checkpoint
from core.testing.server import MemoryServer, memory_server

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[MemoryServer]:
    # Prompts go through in chunks of 7 tokens, and the second request finds its prefix cached.
    with memory_server(checkpoint, dtype="float32", chunked_prefill_size=7, page_size=4, max_total_tokens=2048) as made:
        yield made


@pytest.fixture(scope="module")
def prompt(server: MemoryServer) -> list[int]:
    return post(server, "/tokenize", prompt=TEXT)["tokens"]


@pytest.fixture(scope="module")
def wanted(checkpoint: Path, prompt: list[int]) -> torch.Tensor:
    """[n - 1, V]: row i is the distribution of token i + 1."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), dim=-1)[:-1]


def post(server: MemoryServer, route: str, **body: Any) -> dict[str, Any]:
    reply = server.client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def of_prompt(wanted: torch.Tensor, prompt: list[int]) -> list[float]:
    return [float(wanted[position, token]) for position, token in enumerate(prompt[1:])]


def test_echo_with_logprobs(server: MemoryServer, prompt: list[int], wanted: torch.Tensor) -> None:
    for _ in range(2):  # the second time, what is cached is not used
        (choice,) = post(server, "/v1/completions", prompt=TEXT, echo=True, logprobs=3, max_tokens=0)["choices"]
        assert choice["text"] == TEXT
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == pytest.approx(of_prompt(wanted, prompt), abs=1e-4)
        assert len(logprobs["tokens"]) == len(prompt)
        shown = zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        assert all(TEXT[offset : offset + len(text)] == text for text, offset in shown)
        # Keyed by text, as that shape is, so tokens that look the same share an entry.
        for row, best in zip(wanted, logprobs["top_logprobs"][1:], strict=True):
            likeliest = row.topk(3).values.tolist()
            assert max(best.values()) == pytest.approx(likeliest[0], abs=1e-4)
            others = [value for value in best.values() if value not in logprobs["token_logprobs"]]
            assert all(any(abs(value - other) < 1e-4 for other in likeliest) for value in others)


def test_the_answer_follows_the_prompt(server: MemoryServer, prompt: list[int], wanted: torch.Tensor) -> None:
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    (whole,) = post(server, "/v1/completions", **body)["choices"]
    assert len(whole["logprobs"]["token_logprobs"]) == len(prompt) + 4
    assert whole["logprobs"]["token_logprobs"][1 : len(prompt)] == pytest.approx(of_prompt(wanted, prompt), abs=1e-4)
    reply = server.client.post("/v1/completions", json={**body, "stream": True})
    choices = [json.loads(line[6:])["choices"][0] for line in reply.text.splitlines() if line.startswith("data: {")]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    joined = [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
    assert joined[1:] == pytest.approx(whole["logprobs"]["token_logprobs"][1:], abs=1e-6)


def test_prompt_logprobs_of_completions(server: MemoryServer, prompt: list[int], wanted: torch.Tensor) -> None:
    (choice,) = post(server, "/v1/completions", prompt=TEXT, prompt_logprobs=2, max_tokens=1)["choices"]
    entries = choice["prompt_logprobs"]
    assert entries[0] is None
    for row, token, entry in zip(wanted, prompt[1:], entries[1:], strict=True):
        assert entry[str(token)]["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        ranked = sorted((found["rank"], float(found["logprob"])) for found in entry.values() if found["rank"])
        assert [rank for rank, _ in ranked] == [1, 2]
        assert [value for _, value in ranked] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_prompt_logprobs_of_a_chat(server: MemoryServer) -> None:
    reply = post(
        server, "/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], prompt_logprobs=0,
        return_token_ids=True, max_tokens=2,
    )  # fmt: skip
    ids, entries = reply["prompt_token_ids"], reply["prompt_logprobs"]
    assert len(entries) == len(ids) == reply["usage"]["prompt_tokens"]
    assert entries[0] is None
    assert [list(entry) for entry in entries[1:]] == [[str(token)] for token in ids[1:]]
    (again,) = post(server, "/v1/completions", prompt=ids, prompt_logprobs=0, max_tokens=1)["choices"]
    assert [next(iter(e.values()))["logprob"] for e in entries[1:]] == pytest.approx(
        [next(iter(e.values()))["logprob"] for e in again["prompt_logprobs"][1:]], abs=1e-5
    )


@pytest.mark.parametrize("start", [0, 1, 5])
def test_native(server: MemoryServer, prompt: list[int], wanted: torch.Tensor, start: int) -> None:
    meta = post(
        server, "/generate", input_ids=prompt, return_logprob=True, logprob_start_len=start, top_logprobs_num=2,
        return_text_in_logprobs=True, sampling_params={"max_new_tokens": 2, "temperature": 0},
    )["meta_info"]  # fmt: skip
    told = meta["input_token_logprobs"]
    assert [token for _, token, _ in told] == prompt[start:]
    numbers = of_prompt(wanted, prompt)[max(0, start - 1) :]
    assert [value for value, _, _ in told if value is not None] == pytest.approx(numbers, abs=1e-4)
    assert (told[0][0] is None) == (start == 0)
    assert len(meta["input_top_logprobs"]) == len(told)
    assert "".join(text for _, _, text in told) == "".join(TEXT[len(TEXT) - len("".join(t for *_, t in told)) :])
    assert "input_token_logprobs" not in post(server, "/generate", text="x", return_logprob=True)["meta_info"]


def test_hidden_states(server: MemoryServer, checkpoint: Path, prompt: list[int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    body = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    (choice,) = post(server, "/v1/completions", **body, return_hidden_states=True)["choices"]
    ids = [*prompt, *choice["token_ids"]]
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    got = torch.tensor(choice["hidden_states"])
    torch.testing.assert_close(got, states[: len(got)], atol=1e-4, rtol=1e-4)
    assert len(got) == len(prompt) + 2  # the last token was drawn and never read
    (last,) = post(server, "/v1/completions", **body, return_hidden_states="last")["choices"]
    torch.testing.assert_close(torch.tensor(last["hidden_states"]), got[-3:], atol=1e-4, rtol=1e-4)
