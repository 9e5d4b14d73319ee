"""A body without a length is not kept beyond the limit: not by core's routes, a plugin's, or the request log."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.requests import Request

from core.interfaces.routes import RoutePlugin, ServerAccess
from core.testing.server import memory_server, plugin

LIMIT, PART, NUM_PARTS = 1 << 20, 1 << 16, 1024  # 64 MiB come in


class Reading(RoutePlugin):
    """A route that reads whatever comes."""

    def router(self, server: ServerAccess) -> Any:
        router = APIRouter()

        @router.post("/read")
        async def read(request: Request) -> dict[str, int]:
            return {"size": len(await request.body())}

        return router


class Sender:
    """A client that sends parts as fast as they are taken."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.status = 0

    async def receive(self) -> dict[str, Any]:
        if self.num_taken >= NUM_PARTS:
            return {"type": "http.disconnect"}
        self.num_taken += 1
        return {"type": "http.request", "body": bytes(PART), "more_body": True}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/read"])
async def test_what_is_too_much_is_not_kept(path: str, level: int) -> None:
    async with memory_server(
        plugins=[plugin("routes", "reading", Reading)], max_body_bytes=LIMIT, log_requests=True,
        log_requests_level=level,
    ) as server:  # fmt: skip
        sender = Sender()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip
        tracemalloc.start()
        try:
            await server.app(scope, sender.receive, sender.send)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sender.status == 413
        assert sender.num_taken * PART > LIMIT
        assert peak < 6 * LIMIT, f"{peak / LIMIT:.0f} times the limit"
