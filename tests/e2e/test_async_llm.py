"""AsyncLLM: the same answers as LLM, many at once, each cancelled by closing its generator."""

from __future__ import annotations

import asyncio

import pytest

from core import AsyncLLM, SamplingParams
from core.frontend.output import OutputDelta
from core.interfaces.errors import ConfigError, EngineError, RequestError

GREEDY = {"temperature": 0.0, "max_tokens": 24}


async def whole(deltas) -> tuple[str, str | None]:
    found: list[OutputDelta] = [delta async for delta in deltas]
    return "".join(delta.text for delta in found), found[-1].finish_reason


@pytest.mark.slow
async def test_many_at_once() -> None:
    questions = [f"What is {a} + {b}?" for a, b in ((12, 30), (27, 35), (5, 9), (40, 41))]
    async with AsyncLLM(max_running_requests=8, max_total_tokens=4096) as llm:
        chats = [llm.chat([{"role": "user", "content": q}], GREEDY) for q in questions]
        together = await asyncio.gather(*(whole(chat) for chat in chats))
        alone = [await whole(llm.chat([{"role": "user", "content": q}], GREEDY)) for q in questions]
        assert together == alone
        assert [reason for _, reason in together] == ["stop"] * 4
        assert "42" in together[0][0]
        assert "62" in together[1][0]

        ids = llm.tokenizer.encode("What is 1 + 1?")
        assert await whole(llm.generate(ids, SamplingParams(temperature=0.0, max_tokens=5))) == await whole(
            llm.generate("What is 1 + 1?", {"temperature": 0.0, "max_new_tokens": 5})
        )

        stream = llm.generate("Hello", {"max_tokens": 500, "ignore_eos": True})
        await anext(stream)
        await stream.aclose()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if llm._engine is not None and llm._engine.num_requests == 0:
                break
        assert llm._engine is not None
        assert llm._engine.num_requests == 0

        for call, param in (
            (llm.generate("x", {"n": 2}), "n"),
            (llm.generate("x", {"temprature": 2}), "temprature"),
            (llm.generate(""), "prompt"),
            (llm.chat([]), "messages"),
        ):
            with pytest.raises(RequestError) as caught:
                await whole(call)
            assert caught.value.param == param
        with pytest.raises(EngineError, match="started already"):
            await llm.start()
    with pytest.raises(EngineError, match="not running"):
        llm.tokenizer  # noqa: B018
    await llm.stop()


async def test_what_stops_the_start_is_raised_and_leaves_nothing_behind() -> None:
    llm = AsyncLLM(attention_backend="nowhere")
    with pytest.raises(Exception, match="nowhere"):
        await llm.start()
    with pytest.raises(EngineError, match="not running"):
        llm.service  # noqa: B018
    with pytest.raises(ConfigError, match="contxt"):
        AsyncLLM(contxt_length=1)
