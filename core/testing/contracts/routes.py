"""RoutesContract: the suite of route plugins.

    class TestMine(RoutesContract):
        name = "mine"
        examples = (Example("POST", "/mine/summary", {"text": "a long text"}, generates=True),)

The routes are served by core's real application over a mock model, without a socket. Without examples it still checks
paths, the key, and that nonsense is refused and not an internal error.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import httpx
from fastapi import APIRouter

from core.engine.client import EngineRequest, TokenChunk
from core.interfaces.errors import EngineDead, Overloaded
from core.interfaces.routes import ServerAccess
from core.server.access import Access
from core.server.plugin_routes import routes_of
from core.testing.contracts.base import Contract
from core.testing.server import MemoryServer, memory_server

KEY = "a key of the contract"
PATIENCE_S = 10.0
NONSENSE: tuple[tuple[bytes, str], ...] = (
    (b"", "application/json"),
    (b"{", "application/json"),
    (b"null", "application/json"),
    (b"[]", "application/json"),
    (b'"text"', "application/json"),
    (b'{"\\ud800": [{}]}', "application/json"),
    (b"\xff\xfe\x00", "application/json"),
    (b"\xff\xfe\x00", "application/octet-stream"),
    (b"a=1&a=2", "application/x-www-form-urlencoded"),
    (b"--x\r\n", "multipart/form-data; boundary=x"),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A request that must succeed. json: the body, None for none. generates: it asks the model, so that it must end
    with its client and tell what the engine says."""

    method: str
    path: str
    json: Any = None
    generates: bool = False


class RoutesContract(Contract):
    """See the module. examples: requests that must be answered with 2xx, one of each route at best."""

    kind = "routes"
    examples: ClassVar[Sequence[Example]] = ()

    # The plugin by itself

    def test_makes_a_router_in_each_server(self) -> None:
        """Two servers in a process get a router each."""
        with self.server() as server:
            access = Access(server.context, server.model_name, server.resolution.effective)
            made = [self._router(access), self._router(access)]
        assert made[0] is not made[1], "the second server got the router of the first"
        assert list(routes_of(made[0])), f"{self.record().title} has no routes"

    def test_needs_no_model_to_be_made(self) -> None:
        """`router` is called before the model is there: it may not ask for tokens or texts yet."""
        with self.server() as server:
            server.context.service = None
            self._router(Access(server.context, server.model_name, server.resolution.effective))

    # Behind core's rules

    def test_paths_are_its_own(self) -> None:
        """Entering checks it as `core serve` does; without being named, nothing of it is served."""
        with self.server() as server:
            calls = self._calls(server)
        with self.server(routes=()) as server:
            for method, path in calls:
                status = server.client.request(method, path).status_code
                assert status == 404, f"{method} {path} is answered with {status} by a server without the plugin"

    def test_needs_the_key(self) -> None:
        with self.server(api_key=KEY) as server:
            for method, path in self._calls(server):
                reply = server.client.request(method, path, headers={"authorization": ""})
                assert reply.status_code == 401, f"{method} {path} needs no key"

    def test_nonsense_is_refused(self) -> None:
        """Whatever is sent: no internal error, and the server goes on."""
        with self.server() as server:
            for method, path in self._calls(server):
                for body, content_type in NONSENSE:
                    reply = _asked(server, method, path, content=body, headers={"content-type": content_type})
                    self._no_internal_error(reply, f"{method} {path} with the body {body!r} ({content_type})")
                reply = _asked(server, method, path + "?" + "&".join(f"{name}=%00x" for name in ("n", "id", "limit")))
                self._no_internal_error(reply, f"{method} {path} with odd query values")
            assert server.client.get("/ready").status_code == 200

    def test_while_the_model_loads(self) -> None:
        """Requests may come before the model is there, and while the server drains."""
        with self.server() as server:
            service, server.context.service = server.context.service, None
            for method, path in self._calls(server):
                self._no_internal_error(_asked(server, method, path), f"{method} {path} before the model is there")
            for example in self.examples:
                reply = _asked(server, example.method, example.path, **_body(example))
                self._no_internal_error(reply, f"{example.method} {example.path} before the model is there")
            server.context.service = service

    # Answers

    def test_examples_are_answered(self) -> None:
        """Twice, since the first may leave something behind; and nothing keeps running."""
        self.require(self.examples, "examples")
        with self.server() as server:
            for example in (*self.examples, *self.examples):
                begun = _count(server)
                reply = server.client.request(example.method, example.path, **_body(example))
                assert reply.is_success, (
                    f"{example.method} {example.path} is answered with {reply.status_code}: {reply.text}"
                )
                if example.generates:
                    assert _count(server) > begun, f"{example.method} {example.path} generates nothing"
            assert server.engine.num_requests == 0, "a generation goes on after its answer"

    def test_ends_with_its_client(self) -> None:
        """A client that goes takes its generations along, before the answer and within it."""
        for example in self._generating():
            for num_tokens in (0, 1):
                asyncio.run(self._abandon(example, num_tokens))

    def test_tells_what_the_engine_says(self) -> None:
        """A full queue is a 429 and a dead engine a 503: take the first piece before the answer begins."""
        for example in self._generating():
            for error, status in ((Overloaded("the queue is full"), 429), (EngineDead("the engine is gone"), 503)):
                with self.server() as server:
                    _put_before(server, _Engine(server, error=error))
                    reply = _asked(server, example.method, example.path, **_body(example))
                    got = reply.status_code if reply is not None else "an answer that breaks off"
                    assert got == status, (
                        f"{example.method} {example.path} makes {got} of {type(error).__name__}; it must be {status}"
                    )

    async def _abandon(self, example: Example, num_tokens: int) -> None:
        """Go while the engine stands still after so many tokens."""
        where = f"{example.method} {example.path}"
        async with self.server() as server:
            engine = _Engine(server, num_tokens=num_tokens)
            _put_before(server, engine)

            async def ask() -> None:
                async with server.client.stream(example.method, example.path, **_body(example)) as reply:
                    async for _ in reply.aiter_bytes():
                        pass

            asking = asyncio.create_task(ask())
            await asyncio.wait({asking, asyncio.create_task(engine.stalled.wait())}, timeout=PATIENCE_S,
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            assert engine.stalled.is_set(), f"{where} generates nothing, though its example says so"
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.all_closed(), PATIENCE_S)
            assert not engine.open, f"{where}: the generation goes on after its client has gone"

    # Helpers

    def server(self, **settings: Any) -> MemoryServer:
        """An in-memory server with the plugin; override it for a plugin that needs more around it."""
        record = replace(self.record(), loaded=self.plugin())
        given: dict[str, Any] = {"routes": [record.full_name], "hooks": "none", **settings}
        if self.settings:
            given["plugin_settings"] = {record.full_name: dict(self.settings)}
        return memory_server(plugins=[record], **given)

    def _generating(self) -> list[Example]:
        found = [example for example in self.examples if example.generates]
        self.require(found, "examples that generate")
        return found

    def _router(self, access: ServerAccess) -> APIRouter:
        router: APIRouter = self.plugin()(self.context()).router(access)
        return router

    def _calls(self, server: MemoryServer) -> list[tuple[str, str]]:
        """(method, path) of every route, with made-up values in the path."""
        access = Access(server.context, server.model_name, server.resolution.effective)
        found = [
            (method, re.sub(r"\{[^}]*\}", "1", route.path))
            for route in routes_of(self._router(access))
            for method in sorted(route.methods or {"GET"})
        ]
        assert found, f"{self.record().title} has no routes"
        return found

    def _no_internal_error(self, reply: httpx.Response | None, what: str) -> None:
        assert reply is not None, f"{what}: the answer breaks off"
        assert reply.status_code in (501, 503) or reply.status_code < 500, (
            f"{what} is answered with {reply.status_code}: {reply.text[:200]}"
        )


class _Engine:
    """An engine between the routes and the real one: stands still after `num_tokens` tokens of each generation, or
    raises `error`. open: generations that have begun and were not closed."""

    def __init__(self, server: MemoryServer, num_tokens: int = 0, error: Exception | None = None) -> None:
        self._engine = server.engine
        self._num_tokens = num_tokens
        self._error = error
        self.open = 0
        self.stalled = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenChunk]:
        if self._error is not None:
            raise self._error
        self.open += 1
        try:
            for _ in range(self._num_tokens):
                yield TokenChunk([65])
            self.stalled.set()
            await asyncio.Event().wait()
        finally:
            self.open -= 1

    async def all_closed(self) -> None:
        while self.open:
            await asyncio.sleep(0.01)


def _put_before(server: MemoryServer, engine: _Engine) -> None:
    assert server.context.service is not None
    server.context.service = replace(server.context.service, engine=engine)


def _asked(server: MemoryServer, method: str, path: str, **options: Any) -> httpx.Response | None:
    """The reply; None if it breaks off."""
    try:
        reply: httpx.Response = server.client.request(method, path, **options)
    except httpx.RemoteProtocolError:
        return None
    return reply


def _body(example: Example) -> dict[str, Any]:
    return {} if example.json is None else {"json": example.json}


def _count(server: MemoryServer) -> int:
    """Generations that have ended so far."""
    text = server.client.get("/metrics").text
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in _lines(text, "core_requests_total"))


def _lines(text: str, name: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith(f"{name}{{"))
