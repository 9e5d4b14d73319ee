"""Logit processors over HTTP: with the mock model, with and without overlap, and with the demo model's reasoning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
import torch

from core.interfaces.logit_processors import LogitProcessor, RowState
from core.registry.resolution import Decision
from core.scheduler.scheduler import Scheduler
from core.testing.server import MemoryServer, memory_server, plugin
from core.testing.transport import async_transport


class Spell(LogitProcessor):
    """The generated text is `text`, over and over. `fail_at`: it breaks at this token, in the way of `how`."""

    def open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(arguments.get("text"), str):
            raise ValueError(f"text is {arguments.get('text')!r}; it must be a text")
        return {**arguments, "ids": self.vocabulary.encode(arguments["text"])}

    def apply(self, rows: Sequence[RowState], logits: torch.Tensor) -> None:
        for index, row in enumerate(rows):
            at = len(row.generated)
            ids = row.state["ids"]
            assert row.generated.tolist() == [ids[i % len(ids)] for i in range(at)] or (at and row.state.get("free"))
            if row.state.get("fail_at") == at:
                if row.state["how"] == "raise":
                    raise RuntimeError("broken on purpose")
                logits[index] = float(row.state["how"])
                continue
            logits[index] = float("-inf")
            logits[index, ids[at % len(ids)]] = 1.0


class Tally(LogitProcessor):
    """Favours a token that a hash of the whole text says, so that a lost or doubled token changes what follows."""

    def open(self, arguments: Mapping[str, Any]) -> None:
        return None

    def apply(self, rows: Sequence[RowState], logits: torch.Tensor) -> None:
        for index, row in enumerate(rows):
            value = 7
            for token in [*row.prompt.tolist(), -1, *row.generated.tolist()]:
                value = (value * 31 + token + 2) % 1_000_003
            logits[index, 97 + value % 26] += 30.0


PLUGINS = [plugin("logit_processors", "spell", Spell), plugin("logit_processors", "tally", Tally)]
NAMES = ("spell", "tally")


@pytest.fixture(scope="module")
def server() -> Iterator[MemoryServer]:
    with memory_server(plugins=PLUGINS, logit_processors=NAMES) as made:
        yield made


def asked(name: str, **arguments: Any) -> dict[str, Any]:
    return {"logit_processors": [{"name": name, "arguments": arguments}]}


def generate(server: MemoryServer, text: Any = "x", **fields: Any) -> Any:
    sampling = {"max_new_tokens": 6, "ignore_eos": True, **fields.pop("sampling_params", {})}
    return server.client.post("/generate", json={"text": text, "sampling_params": sampling, **fields})


class TestRoutes:
    def test_every_route_takes_them(self, server: MemoryServer) -> None:
        fields = {**asked("spell", text="abc"), "max_tokens": 6, "ignore_eos": True}
        chat = server.client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], **fields}
        )
        assert chat.json()["choices"][0]["message"]["content"] == "abcabc", chat.text
        plain = server.client.post("/v1/completions", json={"prompt": "x", **fields})
        assert plain.json()["choices"][0]["text"] == "abcabc"
        said = {"model": "mock", "messages": [{"role": "user", "content": "x"}]}
        messages = server.client.post("/v1/messages", json={**said, **fields})
        assert messages.json()["content"][0]["text"] == "abcabc", messages.text
        response = server.client.post("/v1/responses", json={"input": "x", **fields, "max_output_tokens": 6})
        assert response.json()["output"][0]["content"][0]["text"] == "abcabc", response.text
        options = {"num_predict": 6, "ignore_eos": True}
        ollama = server.client.post(
            "/api/chat", json={**said, **asked("spell", text="abc"), "options": options, "stream": False}
        )
        assert ollama.json()["message"]["content"] == "abcabc", ollama.text
        assert generate(server, **asked("spell", text="abc")).json()["text"] == "abcabc"
        assert generate(server, sampling_params=asked("spell", text="ab")).json()["text"] == "ababab"
        bare = generate(server, logit_processors=["tally"])
        assert bare.status_code == 200
        assert bare.json()["text"] == generate(server, **asked("tally")).json()["text"]

    def test_rows_without_processors_are_as_they_were(self, server: MemoryServer) -> None:
        alone = generate(server, ["a", "b"], sampling_params={"seed": 3}).json()
        params = [{"max_new_tokens": 6, "ignore_eos": True, "seed": 3, **extra}
                  for extra in ({}, asked("spell", text="hi"), {})]  # fmt: skip
        made = server.client.post("/generate", json={"text": ["a", "x", "b"], "sampling_params": params}).json()
        assert [made[0]["text"], made[1]["text"], made[2]["text"]] == [alone[0]["text"], "hihihi", alone[1]["text"]]

    def test_logprobs_are_the_models_own(self, server: MemoryServer) -> None:
        made = generate(server, **asked("spell", text="q"), return_logprob=True, sampling_params={"max_new_tokens": 1})
        [[value, token, _]] = made.json()["meta_info"]["output_token_logprobs"]
        assert token == ord("q")
        assert value < -0.1  # not the certainty that the processor made of it

    def test_samples_of_one_prompt_have_their_own_texts(self, server: MemoryServer) -> None:
        made = generate(server, **asked("tally"), sampling_params={"n": 3, "temperature": 1.0, "seed": 1})
        assert len(made.json()) == 3

    def test_min_tokens_and_processors(self, server: MemoryServer) -> None:
        """A processor that leaves nothing but the end of the text, before it may end."""
        made = generate(server, **asked("spell", text="<|im_end|>"),
                        sampling_params={"min_new_tokens": 2, "ignore_eos": False})  # fmt: skip
        assert made.status_code == 500
        assert "exclude each other" in made.text


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            (asked("nobody"), "enabled are spell, tally"),
            (asked("spell", text=3), "text is 3"),
            ({"logit_processors": [{"nme": "spell"}]}, "logit_processors[0].nme"),
            ({"logit_processors": [{"name": ""}]}, "logit_processors[0].name"),
            ({"logit_processors": [{"name": "spell", "arguments": [1]}]}, "logit_processors[0].arguments"),
            ({"logit_processors": ["tally"] * 9}, "at most 8"),
            (asked("spell", text="x" * 70_000), "at most 65536 bytes"),
            ({"thinking_token_budget": 5}, "thinking_token_budget"),
            ({"thinking_token_budget": 5, "max_thinking_tokens": 6}, "max_thinking_tokens"),
            ({"thinking_token_budget": -1}, "thinking_token_budget"),
            ({"custom_logit_processor": "gASV"}, "logit_processors"),
            ({"custom_params": {"thinking_budget": 5}}, "logit_processors"),
        ],
    )
    def test_are_named_and_end_nobody_else(self, server: MemoryServer, fields: dict[str, Any], named: str) -> None:
        reply = generate(server, **fields)
        assert reply.status_code == 400, reply.text
        assert named in reply.text
        chat = server.client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **fields}
        )
        assert chat.status_code == 400, chat.text
        assert generate(server).status_code == 200

    def test_a_server_without_any_says_how(self) -> None:
        with memory_server(plugins=PLUGINS) as bare:
            reply = generate(bare, **asked("spell", text="a"))
            assert reply.status_code == 400
            assert "--logit-processors spell" in reply.text


class TestFaults:
    @pytest.mark.parametrize("how", ["raise", "nan", "inf", "-inf"])
    def test_end_only_whose_they_are(self, server: MemoryServer, how: str) -> None:
        other = generate(server, "b", **asked("tally"), sampling_params={"temperature": 0.0}).json()["text"]
        plain = generate(server, "c", sampling_params={"temperature": 0.0}).json()["text"]

        async def together() -> list[Any]:
            bodies = [("a", asked("spell", text="ab", fail_at=3, how=how)), ("b", asked("tally")), ("c", {})]
            return list(await asyncio.gather(*(post(server, text, extra) for text, extra in bodies)))

        broken, fine, free = server.run(together)
        assert broken.status_code == 500
        assert "spell" in broken.text
        assert fine.json()["text"] == other
        assert free.json()["text"] == plain
        assert generate(server, **asked("spell", text="ab")).json()["text"] == "ababab"


async def post(server: MemoryServer, text: str, extra: dict[str, Any]) -> Any:
    body = {"text": text, "sampling_params": {"max_new_tokens": 6, "ignore_eos": True, "temperature": 0.0}, **extra}
    async with httpx.AsyncClient(transport=async_transport(server.app), base_url="http://memory") as client:
        return await client.post("/generate", json=body)


NUM = 5
BODY = {
    "text": [f"text {i}" for i in range(NUM)],
    "sampling_params": [
        {"max_new_tokens": 36, "temperature": 1.0, "seed": i, "ignore_eos": True, **(asked("tally") if i % 2 else {})}
        for i in range(NUM)
    ],
}


def texts(monkeypatch: pytest.MonkeyPatch, overlap: str, tokens: int) -> tuple[list[str], int]:
    """Answers with room for so many tokens, and how many requests were preempted."""
    preempted: list[int] = []
    preempt = Scheduler._preempt

    def counted(self: Scheduler, slot: int) -> None:
        preempted.append(slot)
        preempt(self, slot)

    # The mock device has no asynchronous steps; a thread does for them.
    monkeypatch.setattr("core.registry.resolve.choose_overlap", lambda *_: Decision("overlap", overlap, "for a test"))
    settings: dict[str, Any] = {"page_size": 4, "max_total_tokens": tokens, "prefix_cache": "none"}
    with monkeypatch.context() as patch, memory_server(plugins=PLUGINS, logit_processors=NAMES, **settings) as server:
        patch.setattr(Scheduler, "_preempt", counted)
        reply = server.client.post("/generate", json=BODY)
        assert reply.status_code == 200, reply.text
        return [made["text"] for made in reply.json()], len(preempted)


def test_overlap_and_preemption_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty, preemptions = texts(monkeypatch, "off", 1024)
    assert preemptions == 0
    assert texts(monkeypatch, "on", 1024) == (plenty, 0)
    for overlap in ("off", "on"):
        made, preemptions = texts(monkeypatch, overlap, 100)
        assert made == plenty
        assert preemptions > 0


@pytest.fixture(scope="module")
def demo() -> Iterator[MemoryServer]:
    settings = {"max_running_requests": 4, "max_total_tokens": 4096}
    with memory_server("demo", logit_processors=("thinking_budget",), **settings) as made:
        yield made


class TestThinkingBudget:
    def chat(self, demo: MemoryServer, **fields: Any) -> Any:
        body = {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "chat_template_kwargs": {"enable_thinking": True},
            "max_tokens": 200, "temperature": 0.0, **fields,
        }  # fmt: skip
        reply = demo.client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def test_reasoning_ends_in_time(self, demo: MemoryServer) -> None:
        free = self.chat(demo)
        used = free["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert used > 6
        for name, budget in (("thinking_token_budget", 3), ("max_thinking_tokens", 0)):
            short = self.chat(demo, **{name: budget})
            tokens = short["usage"]["completion_tokens_details"]["reasoning_tokens"]
            assert tokens <= budget + 2  # the markers may count
            assert short["choices"][0]["message"]["content"]
        same = self.chat(demo, logit_processors=[{"name": "thinking_budget", "arguments": {"budget": 100_000}}])
        assert same["choices"][0]["message"] == free["choices"][0]["message"]

    def test_without_reasoning_nothing_is_forced(self, demo: MemoryServer) -> None:
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        free, short = self.chat(demo, **off), self.chat(demo, **off, thinking_token_budget=0)
        assert short["choices"][0]["message"] == free["choices"][0]["message"]

    @pytest.mark.parametrize("arguments", [{}, {"budget": "3"}, {"budget": -1}, {"budget": 3, "stop": 1}])
    def test_wrong_arguments(self, demo: MemoryServer, arguments: dict[str, Any]) -> None:
        reply = generate(demo, **asked("thinking_budget", **arguments))
        assert reply.status_code == 400
        assert "thinking_budget refuses its arguments" in reply.text
