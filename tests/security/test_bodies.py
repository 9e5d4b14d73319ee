"""Bodies made to hurt: size, depth, numbers, many and equal names. A 4xx in bounded time and memory, never a 500."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from core.testing.server import MemoryServer

ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/generate",  # noqa: E501
    "/api/chat", "/api/generate", "/api/embed", "/v1/embeddings", "/v1/rerank", "/v1/score", "/classify", "/encode",
    "/tokenize", "/detokenize",
)  # fmt: skip
DEEP = {depth: b'{"a":' * depth + b"1" + b"}" * depth for depth in (150, 600, 900, 100_000)}


def post(server: MemoryServer, route: str, raw: bytes) -> Any:
    return server.client.post(route, content=raw, headers={"content-type": "application/json"})


def refused(reply: Any, *statuses: int) -> dict[str, Any]:
    assert reply.status_code in statuses, reply.text[:300]
    assert "Traceback" not in reply.text
    assert len(reply.text) < 4000  # what was sent is not sent back
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("depth", DEEP)
def test_depth(server: MemoryServer, route: str, depth: int) -> None:
    raw = DEEP[depth]
    for body in (raw, b"[" * depth + b"]" * depth):
        refused(post(server, route, body), 400)


@pytest.mark.parametrize(
    "field", ["json_schema", "tools", "chat_template_kwargs", "response_format", "stream_options", "new"]
)
@pytest.mark.parametrize("depth", [150, 190, 600])
def test_depth_inside_of_a_good_request(server: MemoryServer, field: str, depth: int) -> None:
    raw = b'{"messages":[{"role":"user","content":"a"}],"max_tokens":1,"%s":%s}' % (
        field.encode(),
        DEEP[150][:5] * depth,
    )
    raw = raw[:-1] + b"1" + b"}" * depth + b"}"
    reply = post(server, "/v1/chat/completions", raw)
    assert reply.status_code in (200, 400), reply.text[:300]
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    "number",
    [b"9" * 5000, b"-" + b"9" * 4000, b"1e999", b"-1e999", b"NaN", b"Infinity", b"1" * 100_000, b"0." + b"1" * 100_000],
)
@pytest.mark.parametrize("field", ["max_tokens", "temperature", "seed", "priority", "top_k", "timeout", "n"])
def test_numbers(server: MemoryServer, field: str, number: bytes) -> None:
    reply = post(server, "/v1/completions", b'{"prompt":"a","max_tokens":1,"%s":%s}' % (field.encode(), number))
    # 0.111… is a good temperature and a good timeout, so it may be answered, and may be over.
    assert reply.status_code in ((200, 400, 504) if number.startswith(b"0.") else (400,)), reply.text[:300]
    assert len(reply.text) < 8000


def test_many_names(server: MemoryServer) -> None:
    raw = json.dumps({"prompt": "a", "max_tokens": 1} | {f"k{at}": 0 for at in range(20_000)}).encode()
    reply = post(server, "/v1/completions", raw)
    assert reply.status_code in (200, 400)
    assert sum(len(name) + len(value) for name, value in reply.headers.items()) < 16_384


def test_equal_names_have_one_meaning(server: MemoryServer) -> None:
    """The last counts, for every reader of a body: what is logged or checked is what is done."""
    reply = post(server, "/v1/completions", b'{"prompt":"a","max_tokens":5,"max_tokens":1}')
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 1
    assert post(server, "/v1/completions", b'{"prompt":"a","max_tokens":1,"max_tokens":"x"}').status_code == 400


@pytest.mark.parametrize("route", ROUTES)
def test_size(server: MemoryServer, route: str) -> None:
    refused(post(server, route, b'{"prompt":"' + b"x" * (1 << 20) + b'"}'), 413)


def test_size_that_is_not_told(server: MemoryServer) -> None:
    """Chunked, so that no content-length gives it away."""
    refused(server.client.post("/v1/completions", content=iter([b'{"prompt":"', *[b"x" * (1 << 18)] * 8, b'"}'])), 413)


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"\x00", b"{", b"nul", b'"', b'{"prompt":"\\ud800"}', b'{"prompt":"\xed\xa0\x80"}']
)
@pytest.mark.parametrize("route", ROUTES)
def test_no_json(server: MemoryServer, route: str, raw: bytes) -> None:
    refused(post(server, route, raw), 400)


def test_names_that_are_no_text(server: MemoryServer) -> None:
    """Unknown fields come back in a header: no line break nor half of a pair gets there."""
    raw = b'{"prompt":"a","max_tokens":1,"x\\r\\nset-cookie: a=b":1,"\\u0000":2,"\xf0\x9f\x98\x80":3}'
    reply = post(server, "/v1/completions", raw)
    assert reply.status_code in (200, 400)
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, lambda raw: zlib.compress(raw, 0)])
def test_compressed_bodies_are_refused_unread(server: MemoryServer, pack: Any) -> None:
    """Nothing unpacks: a few bytes could become gigabytes."""
    told = refused(post(server, "/v1/chat/completions", pack(b'{"messages": []}' + b" " * 1000)), 415)
    assert "without compression" in told["error"]["message"]


def test_fields_without_number_are_refused_at_once(server: MemoryServer) -> None:
    fields = {f"name_{number}": number for number in range(2000)}
    for route, body in (("/v1/completions", {"prompt": "a"}), ("/v1/embeddings", {"input": "a"})):
        told = refused(post(server, route, json.dumps({**body, **fields}).encode()), 400)
        assert "more than 1000 fields" in told["error"]["message"]


def test_more_ids_than_anybody_needs_as_text(server: MemoryServer) -> None:
    for tokens in ([5] * 70_000, [[5] * 40_000] * 2):
        told = refused(post(server, "/detokenize", json.dumps({"tokens": tokens}).encode()), 400)
        assert told["error"]["param"] == "tokens"


@pytest.mark.parametrize("given", [[1, "a"], ["a", 1], [[1], "a"], [[1, "a"]], [1.5], [None], {}, None, 5, [[[1]]]])
def test_a_prompt_that_is_none(server: MemoryServer, given: Any) -> None:
    told = refused(post(server, "/v1/completions", json.dumps({"prompt": given}).encode()), 400)
    assert told["error"]["param"].startswith("prompt")
