"""Routes of plugins: behind core's key, limits and errors; no path of anybody else's; an end with their client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.requests import Request
from starlette.websockets import WebSocket

from core.engine.engine import Engine
from core.interfaces.errors import ConfigError, PluginClash, PluginLoadError, PluginNotFound
from core.interfaces.params import SamplingParams
from core.interfaces.routes import RoutePlugin, ServerAccess
from core.registry import PluginRecord
from core.server.plugin_routes import overlap
from core.testing.server import memory_server, plugin

LATER: list[Any] = []
LONG = SamplingParams(max_tokens=1500, ignore_eos=True)


class Body(BaseModel):
    text: str
    max_tokens: int = 5


class Options(BaseModel):
    greeting: str = "none"


class Demo(RoutePlugin):
    """Something of everything."""

    def router(self, server: ServerAccess) -> APIRouter:
        router = APIRouter()
        background: list[Any] = []

        @router.post("/demo/complete")
        async def complete(body: Body) -> dict[str, Any]:
            params = SamplingParams(max_tokens=body.max_tokens, ignore_eos=True, seed=1)
            pieces = [piece async for piece in server.generate(body.text, params)]
            return {
                "text": "".join(piece.text for piece in pieces),
                "finish": pieces[-1].finish_reason,
                "tokens": [pieces[-1].num_prompt_tokens, pieces[-1].num_output_tokens],
            }

        @router.get("/demo/about")
        async def about() -> dict[str, Any]:
            chat = server.render_chat([{"role": "user", "content": "hi"}])
            return {
                "model": server.model_name,
                "device": server.effective["device"],
                "ids": server.encode("hi"),
                "text": server.decode([104, 105]),
                "chat": chat,
                "greeting": self.ctx.settings.greeting,
            }

        @router.get("/demo/stream")
        async def stream() -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                async for piece in server.generate("go", LONG):
                    yield piece.text.encode() or b"."

            return StreamingResponse(pieces())

        @router.get("/demo/whole")
        async def whole() -> dict[str, Any]:
            return {"num": len([piece async for piece in server.generate("go", LONG)])}

        @router.get("/demo/forgets")
        async def forgets() -> StreamingResponse:
            """A generator that nobody closes, held by the plugin."""
            generation = server.generate("go", LONG)
            background.append(generation)
            await anext(generation)
            return StreamingResponse(forever())

        @router.get("/demo/later")
        async def later(tasks: BackgroundTasks) -> dict[str, bool]:
            async def work() -> None:
                await asyncio.sleep(0.05)
                LATER.append([piece async for piece in server.generate("go", SamplingParams(max_tokens=2))])

            tasks.add_task(work)
            return {"ok": True}

        @router.get("/demo/bad/{how}")
        async def bad(how: str) -> Any:
            if how == "missing":
                raise HTTPException(404, "there is no such document")
            if how == "params":
                return [piece async for piece in server.generate("go", SamplingParams(n=2))]
            if how == "long":
                return [piece async for piece in server.generate("go" * 2000, SamplingParams())]
            if how == "token":
                return [piece async for piece in server.generate([999], SamplingParams())]
            if how == "empty":
                return [piece async for piece in server.generate([], SamplingParams())]
            raise RuntimeError("a mistake of the plugin")

        @router.post("/demo/size")
        async def size(request: Request) -> dict[str, int]:
            return {"size": len(await request.body())}

        return router


async def forever() -> AsyncIterator[bytes]:
    while True:
        yield b"."
        await asyncio.sleep(0.01)


def routes(name: str, make: Callable[[ServerAccess], Any], **fields: Any) -> PluginRecord:
    class Made(RoutePlugin):
        def router(self, server: ServerAccess) -> Any:
            return make(server)

    return plugin("routes", name, Made, distribution=f"plugin-{name}", **fields)


def serving(*paths: str, method: str = "GET") -> Callable[[ServerAccess], APIRouter]:
    def make(server: ServerAccess) -> APIRouter:
        router = APIRouter()
        for path in paths:
            router.add_api_route(path, lambda: {"ok": True}, methods=[method])
        return router

    return make


DEMO = plugin("routes", "demo", Demo, distribution="plugin-demo-routes", config=Options)


async def aborted(server: Any) -> bool:
    """Whether the one request has come to its end, and not because its text was complete."""
    while server.engine.num_requests:
        await asyncio.sleep(0.01)
    return 'finish_reason="abort"' in (await server.client.get("/metrics")).text


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take so long that a long answer is still under way when somebody looks."""
    original = Engine.step

    def step(self: Engine) -> Any:
        time.sleep(0.003)
        return original(self)

    monkeypatch.setattr(Engine, "step", step)


class TestAccess:
    async def test_answers(self) -> None:
        settings = {"demo": {"greeting": "hello"}}
        async with memory_server(plugins=[DEMO], plugin_settings=settings) as server:
            made = (await server.client.post("/demo/complete", json={"text": "hi"})).json()
            assert (made["finish"], made["tokens"]) == ("length", [3, 5])
            body = {"prompt": "hi", "max_tokens": 5, "ignore_eos": True, "seed": 1}
            reply = (await server.client.post("/v1/completions", json=body)).json()
            assert made["text"] == reply["choices"][0]["text"]
            about = (await server.client.get("/demo/about")).json()
            assert about["model"] == server.model_name == "mock"
            assert (about["device"], about["greeting"]) == ("mock", "hello")
            assert (about["ids"], about["text"]) == ([104, 105], "hi")
            assert bytes(i for i in about["chat"] if i < 256) == b"user\nhi\nassistant\n"

    async def test_what_is_in_effect_says_so(self) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            info = (await server.client.get("/server_info")).json()
            assert info["effective"]["routes"] == "demo"
            entry = next(entry for entry in info["plugins"] if entry["kind"] == "routes")
            assert (entry["name"], entry["distribution"]) == ("demo", "plugin-demo-routes")
            paths = (await server.client.get("/openapi.json")).json()["paths"]
            assert paths["/demo/complete"]["post"]["tags"] == ["demo"]
            assert "tags" not in paths["/generate"]["post"]
            locked = {(entry.kind, entry.name) for entry in server.resolution.lock().plugins}
            assert ("routes", "demo") in locked
            rows = {row.what: row.chosen for row in server.resolution.explain()}
            assert rows["routes"] == "demo (plugin-demo-routes 0.0)"

    async def test_nothing_is_served_unless_named(self) -> None:
        async with memory_server(plugins=[DEMO], routes=()) as server:
            assert (await server.client.get("/demo/about")).status_code == 404

    async def test_while_the_model_loads(self) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            service, server.context.service = server.context.service, None
            reply = await server.client.get("/demo/about")
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")
            server.context.service = service


class TestRules:
    async def test_the_key(self) -> None:
        async with memory_server(plugins=[DEMO], api_key="hush") as server:
            assert (await server.client.get("/demo/about")).status_code == 200
            for path in ("/demo/about", "/demo/bad/x", "/demo"):
                reply = await server.client.get(path, headers={"authorization": "Bearer other"})
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_the_body_limit(self, streamed: bool) -> None:
        async def content() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        async with memory_server(plugins=[DEMO], max_body_bytes=1024) as server:
            assert (await server.client.post("/demo/size", content=b"x" * 1024)).json() == {"size": 1024}
            reply = await server.client.post("/demo/size", content=content() if streamed else b"x" * 1025)
            assert reply.status_code == 413
            assert "larger than 1024 bytes" in reply.json()["error"]["message"]
            reply = await server.client.post("/demo/complete", content=content() if streamed else b"x" * 1025)
            assert reply.status_code == 413

    @pytest.mark.parametrize(
        ("body", "where"), [({}, "text"), ({"text": 1}, "text"), ({"text": "a", "max_tokens": "b"}, "max_tokens")]
    )
    async def test_bad_bodies_are_told_in_the_one_shape(self, body: dict[str, Any], where: str) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            reply = await server.client.post("/demo/complete", json=body)
            assert reply.status_code == 400
            assert reply.json()["error"]["param"] == where
            reply = await server.client.post("/demo/complete", content=b"{")
            assert reply.status_code == 400
            assert reply.json()["error"]["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        ("how", "status", "text"),
        [
            ("missing", 404, "no such document"),
            ("params", 400, "n is 2"),
            ("long", 400, "this model takes at most"),
            ("token", 400, "prompt holds 999"),
            ("empty", 400, "prompt is empty"),
            ("other", 500, "internal error"),
        ],
    )
    async def test_errors(self, how: str, status: int, text: str, caplog: pytest.LogCaptureFixture) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            reply = await server.client.get(f"/demo/bad/{how}")
            assert reply.status_code == status
            assert text in reply.json()["error"]["message"]
            assert ("a mistake of the plugin" in caplog.text) == (status == 500)
            assert (await server.client.get("/demo/nothing")).json()["error"]["message"].startswith("there is no route")
            assert (await server.client.put("/demo/about")).status_code == 405

    @pytest.mark.usefixtures("slow_steps")
    async def test_overload_reaches_the_client(self) -> None:
        async with memory_server(plugins=[DEMO], max_running_requests=1, max_queued_requests=1) as server:
            body = {"text": "go", "max_tokens": 60}
            replies = await asyncio.gather(*(server.client.post("/demo/complete", json=body) for _ in range(6)))
            assert {reply.status_code for reply in replies} == {200, 429}
            assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 429)


@pytest.mark.usefixtures("slow_steps")
class TestClientGone:
    async def test_within_a_stream(self) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            async with server.client.stream("GET", "/demo/stream") as reply:
                async for _ in reply.aiter_bytes():
                    break
                assert server.engine.num_requests == 1
            assert await aborted(server)

    async def test_before_the_answer(self) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            asking = asyncio.create_task(server.client.get("/demo/whole"))
            while not server.engine.num_requests:
                await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert await aborted(server)

    async def test_even_if_the_plugin_holds_on_to_the_generation(self) -> None:
        async with memory_server(plugins=[DEMO]) as server:
            async with server.client.stream("GET", "/demo/forgets") as reply:
                async for _ in reply.aiter_bytes():
                    break
                assert server.engine.num_requests == 1
            assert await aborted(server)

    async def test_after_the_answer_is_not_too_early(self) -> None:
        LATER.clear()
        async with memory_server(plugins=[DEMO]) as server:
            assert (await server.client.get("/demo/later")).json() == {"ok": True}
            assert len(LATER) == 1, "what the route does after its answer goes on"


def websocket(server: ServerAccess) -> APIRouter:
    router = APIRouter()

    @router.websocket("/mine/socket")
    async def socket(connection: WebSocket) -> None: ...

    return router


def mounted(server: ServerAccess) -> APIRouter:
    router = APIRouter()
    router.mount("/mine/app", FastAPI())
    return router


def nested(server: ServerAccess) -> APIRouter:
    router = APIRouter(prefix="/v1")
    inner = serving("/models")(server)
    router.include_router(inner)
    return router


def starts_up(server: ServerAccess) -> APIRouter:
    return APIRouter(on_startup=[lambda: None])


class TestRefusedAtStart:
    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (serving("/generate"), "serves /generate, as core does"),
            (serving("/generate/"), "serves /generate/, and core serves /generate"),
            (serving("/v1/models/mine"), "core serves /v1/models/{name:path}"),
            (serving("/{anything}"), "serves /{anything}, and core serves /"),
            (serving("/{all:path}"), "and core serves"),
            (serving("/"), "serves /, as core does"),
            (serving("/page/mine.js"), "serves /page/mine.js, and core serves /page/{name}"),
            (serving("/page/mine/x.js"), "core serves /page/"),
            (serving("/favicon.ico"), "as core does"),
            (serving("/health", method="POST"), "as core does"),
            (serving("/openapi.json"), "as core does"),
            (nested, "serves /v1/models, as core does"),
        ],
    )
    async def test_paths_of_core(self, make: Any, told: str) -> None:
        with pytest.raises(PluginClash) as caught:
            async with memory_server(plugins=[routes("mine", make)]):
                pass
        assert caught.value.message.startswith("routes plugin 'mine' (distribution plugin-mine 0.0) serves")
        assert told in caught.value.message

    async def test_the_chat_page_cannot_be_taken_even_if_it_is_off(self) -> None:
        with pytest.raises(PluginClash, match="as core does"):
            async with memory_server(plugins=[routes("mine", serving("/"))], chat_page=False):
                pass

    async def test_paths_of_each_other(self) -> None:
        plugins = [routes("one", serving("/x/{a}/b")), routes("two", serving("/x/y/{b}"))]
        with pytest.raises(PluginClash, match=r"plugin-two 0\.0.*serves /x/y/{b}, and .*plugin-one 0\.0.*/x/{a}/b"):
            async with memory_server(plugins=plugins):
                pass
        async with memory_server(plugins=plugins, routes="one") as server:
            assert (await server.client.get("/x/1/b")).json() == {"ok": True}

    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (websocket, "only HTTP routes"),
            (mounted, "only HTTP routes"),
            (starts_up, "on_startup"),
            (serving("/mine", method="OPTIONS"), "OPTIONS on /mine"),
            (lambda server: {"/mine": 1}, "gives dict as its routes"),
            (lambda server: 1 / 0, "ZeroDivisionError"),
            (lambda server: server.encode("x"), "could not make its routes: the model is still loading"),
        ],
    )
    async def test_what_is_no_http_route(self, make: Any, told: str) -> None:
        with pytest.raises(PluginLoadError, match=r"distribution plugin-mine 0\.0") as caught:
            async with memory_server(plugins=[routes("mine", make)]):
                pass
        assert told in caught.value.message

    async def test_a_named_one_must_be_there_and_work(self) -> None:
        with pytest.raises(PluginNotFound, match="'absent'"):
            async with memory_server(routes=["absent"]):
                pass
        broken = PluginRecord("routes", "mine", "plugin-mine", "1.0", target="nowhere_at_all:Mine")
        with pytest.raises(PluginLoadError, match=r"plugin-mine 1\.0.*ModuleNotFoundError"):
            async with memory_server(plugins=[broken]):
                pass

        class Abstract(RoutePlugin):
            pass

        with pytest.raises(PluginLoadError, match=r"abstract method .*router"):
            async with memory_server(plugins=[plugin("routes", "mine", Abstract)]):
                pass

    async def test_wrong_settings(self) -> None:
        record = plugin("routes", "mine", Demo, config="core.config.sections:SchedulerSettings")
        with pytest.raises(ConfigError, match="max_queued_requests"):
            async with memory_server(plugins=[record], plugin_settings={"mine": {"max_queued_requests": "x"}}):
                pass

    async def test_nothing_is_left_behind(self) -> None:
        before = len(asyncio.all_tasks())
        with pytest.raises(PluginClash):
            async with memory_server(plugins=[routes("mine", serving("/generate"))]):
                pass
        assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/a", "/a", True),
        ("/a", "/a/", True),
        ("/a", "/b", False),
        ("/a", "/a/b", False),
        ("/a/{x}", "/a/b", True),
        ("/a/{x}", "/a", False),
        ("/a/{x}/c", "/{y}/b/c", True),
        ("/a/{x}/c", "/{y}/b/d", False),
        ("/a/{x:path}", "/a/b/c", True),
        ("/a/{x:path}", "/a", True),
        ("/a/{x:path}", "/b/c", False),
        ("/a/{x:path}/end", "/a/b", True),
        ("/a/{x}.json", "/a/b", True),
        ("/a/{x:int}", "/a/b", True),
        ("/", "/{x}", True),
    ],
)
def test_templates_that_may_meet(one: str, other: str, same: bool) -> None:
    assert overlap(one, other) is same
    assert overlap(other, one) is same
