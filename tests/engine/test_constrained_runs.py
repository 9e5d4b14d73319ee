"""Texts that fit grammars, with the real scheduler, runner and backend: preemption and overlap change nothing."""

from __future__ import annotations

import re

import pytest

from core.registry.resolution import Decision
from core.scheduler.scheduler import Scheduler
from core.testing.server import memory_server

pytest.importorskip("llguidance")
FORM = "[a-z ]{20,30}!"
NUM = 6
BODY = {
    "text": [f"text {i}" for i in range(NUM)],
    "sampling_params": [
        {"max_new_tokens": 36, "temperature": 1.0, "seed": i, "ignore_eos": True, **({"regex": FORM} if i % 2 else {})}
        for i in range(NUM)
    ],
}


def texts(tokens: int) -> tuple[list[str], int]:
    """Answers with room for so many tokens, and how many requests were preempted."""
    preempted: list[int] = []
    preempt = Scheduler._preempt

    def counted(self: Scheduler, slot: int) -> None:
        preempted.append(slot)
        preempt(self, slot)

    settings = {"page_size": 4, "max_total_tokens": tokens, "prefix_cache": "none"}
    with (
        pytest.MonkeyPatch.context() as patch,
        memory_server(distributions=["plugin-llguidance"], **settings) as server,
    ):
        patch.setattr(Scheduler, "_preempt", counted)
        reply = server.client.post("/generate", json=BODY)
        assert reply.status_code == 200, reply.text
        return [made["text"] for made in reply.json()], len(preempted)


@pytest.fixture(scope="module")
def plenty() -> list[str]:
    made, preemptions = texts(1024)
    assert preemptions == 0
    for index in range(1, NUM, 2):
        assert re.fullmatch(FORM, made[index]), made[index]
    return made


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_preempted_texts_go_on_as_they_would_have(
    overlap: str, plenty: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The mock device has no asynchronous steps; a thread does for them.
    monkeypatch.setattr("core.registry.resolve.choose_overlap", lambda *_: Decision("overlap", overlap, "for a test"))
    made, preemptions = texts(120)
    assert made == plenty
    assert preemptions > 0
