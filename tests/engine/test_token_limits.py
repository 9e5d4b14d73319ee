"""Tokens that a request allows and sequences that it does not: the mask is what the definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.token_limits import TokenLimits, everything
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.testing.server import memory_server

VOCAB = 70
IDS = st.integers(0, 5) | st.integers(0, VOCAB - 1)


@given(
    allowed=st.sets(IDS, max_size=6),
    bad=st.lists(st.lists(IDS, min_size=1, max_size=4).map(tuple), max_size=6),
    text=st.lists(IDS, max_size=12),
)
def test_the_mask_of_every_step(allowed: set[int], bad: list[tuple[int, ...]], text: list[int]) -> None:
    sampling = SamplingParams(allowed_token_ids=tuple(allowed), bad_token_ids=tuple(bad))
    limits = TokenLimits.of(sampling, num_words=3)
    if not (allowed or bad):
        assert limits is None
        return
    assert limits is not None
    for length in range(len(text) + 1):
        mask = np.zeros(3, np.uint32)
        everything(mask)
        limits.apply(mask)
        before = tuple(text[:length])
        for token in range(VOCAB):
            ends = any((*before, token)[-len(sequence) :] == sequence for sequence in bad)
            fits = (not allowed or token in allowed) and not ends
            assert bool(mask[token // 32] >> np.uint32(token % 32) & 1) == fits, (before, token)
        if length < len(text):
            limits.take(text[length])


COMMON = {"prompt": "once upon", "max_tokens": 60, "temperature": 1.0, "ignore_eos": True, "return_token_ids": True}


async def test_over_http_only_allowed_tokens_come() -> None:
    async with memory_server() as server:
        allowed = [10, 64, 65, 97]
        for seed in range(3):
            body = COMMON | {"seed": seed, "allowed_token_ids": allowed, "n": 2}
            reply = (await server.client.post("/v1/completions", json=body)).json()
            for choice in reply["choices"]:
                assert len(choice["token_ids"]) == 60
                assert set(choice["token_ids"]) <= set(allowed)
        wrong = await server.client.post("/v1/completions", json=COMMON | {"allowed_token_ids": [999_999]})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "allowed_token_ids")
        none = await server.client.post(
            "/v1/completions", json=COMMON | {"allowed_token_ids": [65], "bad_words": ["A"]}
        )
        assert none.json()["error"]["code"] == "no_token_allowed"
        assert server.engine.num_requests == 0


async def test_over_http_bad_words_do_not_come_and_their_beginnings_do() -> None:
    async with memory_server() as server:
        body = COMMON | {"seed": 5, "allowed_token_ids": list(b"abc "), "max_tokens": 300}
        plain = (await server.client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        assert {"ab", "cc", "bca"} <= {plain[i : i + n] for i in range(300) for n in (2, 3)}
        held = await server.client.post("/v1/completions", json=body | {"bad_words": ["ab", "cc", "bca"]})
        text = held.json()["choices"][0]["text"]
        assert len(text) == 300
        assert not any(word in text for word in ("ab", "cc", "bca"))
        assert {"a", "b", "c", " ", "bc"} <= {text[i : i + n] for i in range(300) for n in (1, 2)}


async def test_a_grammar_and_limits_hold_together() -> None:
    async with memory_server(distributions=("plugin-llguidance",)) as server:
        body = COMMON | {"regex": "[a-f]{20}", "ignore_eos": False, "bad_words": ["aa", "b"], "seed": 2}
        text = (await server.client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        assert len(text) == 20
        assert set(text) <= set("acdef")
        assert "aa" not in text


@pytest.mark.parametrize("given", [{"bad_words": [""]}, {"bad_token_ids": ((),)}, {"allowed_token_ids": (-1,)}])
def test_what_cannot_be_is_refused(given: dict) -> None:
    with pytest.raises(RequestError, match=next(iter(given))):
        SamplingParams(**given)
