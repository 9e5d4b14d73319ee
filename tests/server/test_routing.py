"""Which route a request finds, and how a route's function is called."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.dependencies import utils
from fastapi.routing import APIRoute
from running import Running
from starlette.requests import Request
from starlette.responses import Response

from core.server.headers import header
from core.server.routing import RequestRoute


@pytest.fixture(scope="module")
def shared(launch) -> Iterator[Running]:
    with launch() as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/models", 200, None),
        ("GET", "/v1/models/tiny", 200, None),
        ("GET", "/v1/models/other", 404, None),
        ("GET", "/v1/models/tiny/more", 404, None),
        ("HEAD", "/v1/models", 405, "GET"),
        ("POST", "/v1/models", 405, "GET"),
        ("GET", "/v1/completions", 405, "POST"),
        ("HEAD", "/v1/completions", 405, "POST"),
        ("OPTIONS", "/v1/completions", 405, "POST"),
        ("DELETE", "/v1/messages", 405, "POST"),
        ("POST", "/v1/completions", 400, None),
        ("POST", "/v1/completions/more", 404, None),
        ("POST", "/v1/Completions", 404, None),
        ("POST", "/v1//completions", 404, None),
        ("POST", "/v1/completions/", 307, None),
        ("GET", "/v1/responses/resp_1", 404, None),
        ("POST", "/v1/responses/resp_1/cancel", 404, None),
        ("PUT", "/v1/responses/resp_1", 405, "GET"),
        ("POST", "/api/chat", 400, None),
        ("GET", "/openapi.json", 200, None),
        ("GET", "/nothing", 404, None),
    ],
)
def test_what_a_path_and_a_method_find(shared: Running, method: str, path: str, status: int, allow: str | None) -> None:
    reply = httpx.request(method, shared.url + path, content=b"{}")
    assert reply.status_code == status, reply.text
    assert reply.headers.get("allow") == allow
    if status == 307:
        assert reply.headers["location"] == f"{shared.url}/v1/completions"


def test_a_route_is_counted_by_its_template(shared: Running) -> None:
    httpx.get(f"{shared.url}/v1/responses/resp_2")
    httpx.get(f"{shared.url}/v1/classify")
    told = httpx.get(f"{shared.url}/metrics").text
    assert 'route="/v1/responses/{response_id}",status="404"' in told
    assert 'method="GET",route="/v1/classify",status="405"' in told


async def _call(app: FastAPI, path: str, query: bytes = b"") -> bytes:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": query, "root_path": "", "scheme": "http", "headers": [], "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[1]["body"]


def test_a_function_of_the_request_is_called_directly_and_others_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    router = APIRouter(route_class=RequestRoute)

    @router.get("/direct")
    async def direct(request: Request) -> Response:
        return Response(request.url.path)

    @router.get("/solved/{number}")
    async def solved(request: Request, number: int, asked: str = "no") -> Response:
        return Response(f"{request.url.path} {number + 1} {asked}")

    @router.get("/value")
    async def value() -> dict[str, int]:
        return {"a": 1}

    app = FastAPI()
    app.router.routes.extend(router.routes)
    num_solved = 0
    solve = utils.solve_dependencies

    async def counted(**arguments: Any) -> Any:
        nonlocal num_solved
        num_solved += 1
        return await solve(**arguments)

    monkeypatch.setattr("fastapi.routing.solve_dependencies", counted)
    assert asyncio.run(_call(app, "/direct")) == b"/direct"
    assert num_solved == 0
    assert asyncio.run(_call(app, "/solved/4", b"asked=yes")) == b"/solved/4 5 yes"
    assert asyncio.run(_call(app, "/value")) == b'{"a":1}'
    assert num_solved == 2
    assert app.openapi()["paths"].keys() == {"/direct", "/solved/{number}", "/value"}


def test_generation_routes_are_called_directly(shared: Running) -> None:
    """No route of the families that generate has something for FastAPI to solve, unless its path has a name."""
    for name in ("chat", "completions", "generate", "embeddings", "anthropic.routes", "ollama.routes"):
        module = __import__(f"core.server.{name}", fromlist=["routes"])
        posts = [route for route in module.routes(shared.ctx).routes if "POST" in route.methods]
        assert posts
        for route in posts:
            assert isinstance(route, APIRoute)
            assert route.get_route_handler() is route.endpoint


def test_headers_by_name() -> None:
    scope = {"headers": [(b"a", b"1"), (b"x-request-id", b"\xe9"), (b"a", b"2")]}
    assert (header(scope, b"a"), header(scope, b"x-request-id"), header(scope, b"b")) == ("1", "é", None)
