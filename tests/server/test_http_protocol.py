"""What is no body is bounded: request lines, headers, trailers, in one piece or in many, with an end or without."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import uvicorn

from core.server import http_protocol
from core.server.http_protocol import MAX_HEAD_BYTES
from core.server.main import _http_protocol

MUCH = 8 * MAX_HEAD_BYTES
PART = b"x" * 4096


gone = asyncio.Event()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and tells its size; at /much sends a lot until the client is gone, which sets `gone`."""
    if scope["path"] == "/much":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": PART * 256, "more_body": True})
            with contextlib.suppress(TimeoutError):
                message = await asyncio.wait_for(receive(), 0.001)
                if message["type"] == "http.disconnect":
                    gone.set()
                    return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    told = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(app, http=_http_protocol(), lifespan="off", log_level="critical", port=0)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def talk(port: int, parts: Iterable[bytes]) -> tuple[bytes, int]:
    """(what came back, bytes that were taken before it)"""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = 0
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
                sent += len(part)
                if writer.is_closing() or reader.at_eof():
                    break
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                return await reader.read(1 << 16), sent
            return b"", sent
    finally:
        writer.close()


START = b"POST / HTTP/1.1\r\nhost: a\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"
ENDLESS = [PART] * (MUCH // len(PART))
LINES = [b"name-%d: %s\r\n" % (number, PART) for number in range(MUCH // len(PART))]
HOSTILE = {
    "line": [b"GET /", *ENDLESS],
    "name": [START, *ENDLESS],
    "value": [START, b"name: ", *ENDLESS],
    "lines": [START, *LINES],
    "trailer": [CHUNKED, b"0\r\nname: ", *ENDLESS],
    "trailers": [CHUNKED, b"0\r\n", *LINES],
    "extension": [CHUNKED, b"4;a=", *ENDLESS],
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_too_much_of_a_head_is_refused(port: int, what: str) -> None:
    told, _ = await talk(port, HOSTILE[what])
    assert told == b"" or told.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), told[:200]
    again, _ = await talk(port, [START + b"content-length: 2\r\nconnection: close\r\n\r\nab"])
    assert again.endswith(b"\r\n\r\n2"), "the server goes on"


async def test_bodies_of_any_size_pass(port: int) -> None:
    """Limits on bodies are the routes' own."""
    head = START + b"content-length: %d\r\nconnection: close\r\n\r\n" % (len(ENDLESS) * len(PART))
    told, _ = await talk(port, [head, *ENDLESS])
    assert told.endswith(b"%d" % (len(ENDLESS) * len(PART)))
    chunks = [b"%x\r\n%s\r\n" % (len(PART), PART) for _ in ENDLESS]
    told, _ = await talk(port, [CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), *chunks, b"0\r\n\r\n"])
    assert told.endswith(b"%d" % (len(ENDLESS) * len(PART)))


async def test_one_request_after_the_other_counts_anew(port: int) -> None:
    large = START + b"name: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\ncontent-length: 1\r\n\r\na"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(5):
        writer.write(large)
        async with asyncio.timeout(20):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(1) == b"1"
    writer.close()


SLOW = {
    "nothing at all": [],
    "no end of the head": [START],
    "no body": [START + b"content-length: 5\r\n\r\n"],
    "half a body": [START + b"content-length: 5\r\n\r\nab"],
    "half a chunk": [CHUNKED + b"5\r\nab"],
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "READ_S", 0.2)
    monkeypatch.setattr(http_protocol, "LOOK_S", 0.05)


@pytest.mark.parametrize("what", SLOW)
@pytest.mark.usefixtures("impatient")
async def test_a_request_that_does_not_come_is_ended(port: int, what: str) -> None:
    told, _ = await talk(port, SLOW[what])
    assert told.startswith(b"HTTP/1.1 408 ")
    assert told.endswith(b"The request came too late.")


@pytest.mark.parametrize("drop", [b"x", b"\r\n"], ids=["header", "empty lines"])
@pytest.mark.usefixtures("impatient")
async def test_a_byte_now_and_then_is_not_enough(port: int, drop: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(START + b"content-length: 1\r\n\r\na" + (START if drop == b"x" else b""))
    async with asyncio.timeout(20):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(1) == b"1"
        with contextlib.suppress(ConnectionError):  # closed, with what was sent last unread
            while not reader.at_eof():
                writer.write(drop)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(256), 0.02)
    writer.close()


@pytest.mark.usefixtures("impatient")
async def test_who_waits_for_an_answer_or_sends_a_large_body_has_time(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MIN_BYTES_PER_S", 16)  # 4 KiB: 256 seconds
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(START + b"content-length: %d\r\nconnection: close\r\n\r\n" % (2 * len(PART)) + PART)
    await asyncio.sleep(0.5)
    writer.write(PART)
    async with asyncio.timeout(20):
        assert (await reader.read()).endswith(b"%d" % (2 * len(PART)))
    writer.close()


@pytest.mark.usefixtures("impatient")
async def test_who_takes_nothing_of_an_answer_is_left(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "SEND_S", 0.2)
    gone.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
    writer.write(b"GET /much HTTP/1.1\r\nhost: a\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    async with asyncio.timeout(20):
        await gone.wait()
    writer.close()
