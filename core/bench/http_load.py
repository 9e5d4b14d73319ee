"""Load over HTTP against any OpenAI-compatible server; measures what a client sees."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from core.bench.datasets import Conversation
from core.bench.report import RequestRecord
from core.interfaces.errors import EngineError


async def run_load(
    base_url: str,
    model: str,
    conversations: Sequence[Conversation],
    *,
    concurrency: int,
    request_rate: float,
    seed: int,
    api_key: str | None = None,
    timeout_s: float = 600.0,
) -> tuple[list[RequestRecord], float]:
    """Send every conversation; returns one record per request and the wall time in seconds.

    request_rate: conversations started per second, as a Poisson process; infinity starts all at once. At most
    `concurrency` are open at a time.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    gate = asyncio.Semaphore(concurrency)
    rng = random.Random(seed)
    records: list[RequestRecord] = []
    async with httpx.AsyncClient(base_url=base_url, headers=headers, limits=limits, timeout=timeout_s) as client:
        begin = time.perf_counter()

        async def converse(conversation: Conversation, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            async with gate:
                await _converse(client, model, conversation, begin, records)

        delay_s, tasks = 0.0, []
        for conversation in conversations:
            tasks.append(asyncio.create_task(converse(conversation, delay_s)))
            if request_rate != float("inf"):
                delay_s += rng.expovariate(request_rate)
        await asyncio.gather(*tasks)
        return records, time.perf_counter() - begin


async def model_of(base_url: str, api_key: str | None = None) -> str:
    """The first model that a server lists. Raises EngineError if it does not answer or lists none."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30.0) as client:
            reply = await client.get("/v1/models")
            reply.raise_for_status()
            return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, LookupError, ValueError) as error:
        raise EngineError(
            f"{base_url}/v1/models gave no model: {error}", hint="is the server running, and is --api-key right?"
        ) from error


async def _converse(
    client: httpx.AsyncClient, model: str, conversation: Conversation, begin: float, records: list[RequestRecord]
) -> None:
    common = {
        "model": model,
        "max_tokens": conversation.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if conversation.token_ids is not None:
        body = common | {"prompt": conversation.token_ids}
        await _timed(client, "/v1/completions", body, begin, records)
        return
    messages: list[dict[str, str]] = []
    for text in conversation.turns:
        messages.append({"role": "user", "content": text})
        reply = await _timed(client, "/v1/chat/completions", common | {"messages": messages}, begin, records)
        if reply is None:
            return
        messages.append({"role": "assistant", "content": reply})


async def _timed(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], begin: float, records: list[RequestRecord]
) -> str | None:
    """One streamed request. Returns its text, or None if it failed (the record says why)."""
    record = RequestRecord(start_s=time.perf_counter() - begin)
    records.append(record)
    pieces: list[str] = []
    last = record.start_s
    try:
        async for event in _events(client, path, body):
            now = time.perf_counter() - begin
            if "error" in event:
                raise RuntimeError(str(event["error"].get("message", event["error"])))
            if event.get("choices"):
                choice = event["choices"][0]
                delta = choice.get("delta") or {}
                piece = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
                pieces.append(piece)
                if record.first_token_s != record.first_token_s:  # NaN: nothing has come yet
                    if piece or choice.get("finish_reason"):
                        record.first_token_s = last = now
                elif piece:
                    record.gaps_s.append(now - last)
                    last = now
            usage = event.get("usage")
            if usage:
                record.prompt_tokens = usage["prompt_tokens"]
                record.output_tokens = usage["completion_tokens"]
                record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        record.end_s = time.perf_counter() - begin
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        record.error = f"{type(error).__name__}: {error}"
        return None
    return "".join(pieces)


async def _events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with client.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode(errors="replace")
            raise RuntimeError(f"HTTP {response.status_code}: {text[:300]}")
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line[6:])
