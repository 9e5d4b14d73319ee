"""Texts that fit grammars, with the real scheduler, runner and backend: preemption and overlap change nothing."""

from __future__ import annotations

import re

import pytest

from core.testing.server import memory_server

FORM = "[a-z ]{20,40}!"
BODY = {
    "text": ["some text", *(f"text {i}" for i in range(7))],
    "sampling_params": [
        {"max_new_tokens": 48, "temperature": 1.0, "seed": i, "ignore_eos": True, **({"regex": FORM} if i % 2 else {})}
        for i in range(8)
    ],
}


def texts(overlap: str, tokens: int) -> tuple[list[str], int]:
    settings = {"overlap": overlap, "page_size": 4, "max_total_tokens": tokens, "prefix_cache": "none"}
    with memory_server(distributions=["plugin-llguidance"], **settings) as server:
        reply = server.client.post("/generate", json=BODY)
        assert reply.status_code == 200, reply.text
        metrics = server.client.get("/metrics").text
        found = re.search(r"^core_preemptions(?:_total)?(?:\{.*\})? ([0-9.]+)", metrics, re.MULTILINE)
        return [made["text"] for made in reply.json()], int(float(found[1])) if found else -1


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_preempted_texts_go_on_as_they_would_have(overlap: str) -> None:
    pytest.importorskip("llguidance")
    plenty, _ = texts("off", 1024)
    for index in range(1, 8, 2):
        assert re.fullmatch(FORM, plenty[index]), plenty[index]
    assert texts(overlap, 1024)[0] == plenty
    assert texts(overlap, 160)[0] == plenty
