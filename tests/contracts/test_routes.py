"""The suite of route plugins: a good one passes, and each mistake is caught by the test that is there for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.requests import Request

from core.interfaces.params import SamplingParams
from core.interfaces.routes import GeneratedText, RoutePlugin, ServerAccess
from core.testing.contracts.routes import Example, RoutesContract

PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)
EXAMPLES = (
    Example("POST", "/mine/whole", {"text": "hi"}, generates=True),
    Example("POST", "/mine/stream", {"text": "hi"}, generates=True),
    Example("GET", "/mine/count/some%20words"),
)


class Body(BaseModel):
    text: str


async def chained(first: GeneratedText, rest: AsyncIterator[GeneratedText]) -> AsyncIterator[str]:
    yield first.text
    async for piece in rest:
        yield piece.text


class Good(RoutePlugin):
    prefix = "/mine"

    def router(self, server: ServerAccess) -> APIRouter:
        router = APIRouter(prefix=self.prefix)

        @router.post("/whole")
        async def whole(body: Body) -> dict[str, str]:
            return {"text": "".join([piece.text async for piece in server.generate(body.text, PARAMS)])}

        @router.post("/stream")
        async def stream(body: Body) -> StreamingResponse:
            pieces = server.generate(body.text, PARAMS)
            first = await anext(pieces)
            return StreamingResponse(chained(first, pieces))

        @router.get("/count/{text}")
        async def count(text: str) -> dict[str, int]:
            return {"tokens": len(server.encode(text))}

        self.more(router, server)
        return router

    def more(self, router: APIRouter, server: ServerAccess) -> None: ...


class TestGood(RoutesContract):
    implementation = Good
    examples = EXAMPLES


class TestWithoutExamples(RoutesContract):
    implementation = Good


class Empty(RoutePlugin):
    def router(self, server: ServerAccess) -> APIRouter:
        return APIRouter()


def nothing() -> dict[str, str]:
    return {}


class Shared(Good):
    only = APIRouter()
    only.add_api_route("/mine/x", nothing)

    def router(self, server: ServerAccess) -> APIRouter:
        return self.only


class Eager(Good):
    def more(self, router: APIRouter, server: ServerAccess) -> None:
        server.encode("at once")


class Shadows(Good):
    prefix = "/v1/models"


class ReadsJson(Good):
    def more(self, router: APIRouter, server: ServerAccess) -> None:
        @router.post("/raw")
        async def raw(request: Request) -> Any:
            return {"num": len((await request.json())["text"])}


class ReadsQuery(Good):
    def more(self, router: APIRouter, server: ServerAccess) -> None:
        @router.get("/list")
        async def listed(request: Request) -> Any:
            return list(range(int(request.query_params.get("limit", 3))))


class HasNoModelYet(Good):
    def more(self, router: APIRouter, server: ServerAccess) -> None:
        @router.get("/name")
        async def name() -> Any:
            return {"name": server._ctx.service.name}  # type: ignore[attr-defined]


class Fails(Good):
    def more(self, router: APIRouter, server: ServerAccess) -> None:
        router.routes[:] = [route for route in router.routes if route.path != "/mine/count/{text}"]  # type: ignore[attr-defined]

        @router.get("/count/{text}")
        async def count(text: str) -> Any:
            return {"tokens": len(server.encode(text)) // 0}


class Detached(Good):
    """Generates in a task of its own, which nobody cancels."""

    def more(self, router: APIRouter, server: ServerAccess) -> None:
        import asyncio

        router.routes[:] = [route for route in router.routes if route.path != "/mine/whole"]  # type: ignore[attr-defined]

        @router.post("/whole")
        async def whole(body: Body) -> Any:
            async def run() -> list[str]:
                return [piece.text async for piece in server.generate(body.text, PARAMS)]

            self.task = asyncio.create_task(run())
            return await asyncio.shield(self.task)


class Swallows(Good):
    """Turns every error into an answer."""

    def more(self, router: APIRouter, server: ServerAccess) -> None:
        router.routes[:] = [route for route in router.routes if route.path != "/mine/whole"]  # type: ignore[attr-defined]

        @router.post("/whole")
        async def whole(body: Body) -> Any:
            try:
                return [piece.text async for piece in server.generate(body.text, PARAMS)]
            except Exception:
                return []


class Hasty(Good):
    """Begins the answer before the first piece is there."""

    def more(self, router: APIRouter, server: ServerAccess) -> None:
        router.routes[:] = [route for route in router.routes if route.path != "/mine/stream"]  # type: ignore[attr-defined]

        @router.post("/stream")
        async def stream(body: Body) -> StreamingResponse:
            async def pieces() -> AsyncIterator[str]:
                async for piece in server.generate(body.text, PARAMS):
                    yield piece.text

            return StreamingResponse(pieces())


class Idle(Good):
    """Says it generates, and does not."""

    def more(self, router: APIRouter, server: ServerAccess) -> None:
        router.routes[:] = [route for route in router.routes if route.path != "/mine/whole"]  # type: ignore[attr-defined]

        @router.post("/whole")
        async def whole(body: Body) -> Any:
            return {"text": "canned"}


MUTANTS = [
    (Empty, "test_makes_a_router_in_each_server"),
    (Shared, "test_makes_a_router_in_each_server"),
    (Eager, "test_needs_no_model_to_be_made"),
    (Shadows, "test_paths_are_its_own"),
    (ReadsJson, "test_nonsense_is_refused"),
    (ReadsQuery, "test_nonsense_is_refused"),
    (HasNoModelYet, "test_while_the_model_loads"),
    (Fails, "test_examples_are_answered"),
    (Idle, "test_examples_are_answered"),
    (Idle, "test_ends_with_its_client"),
    (Detached, "test_ends_with_its_client"),
    (Swallows, "test_tells_what_the_engine_says"),
    (Hasty, "test_tells_what_the_engine_says"),
]


@pytest.mark.parametrize(("mutant", "test"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_mutants_are_caught(mutant: type, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.testing.contracts.routes.PATIENCE_S", 0.3)
    suite = type("Suite", (RoutesContract,), {"implementation": mutant, "examples": EXAMPLES})()
    try:
        getattr(suite, test)()
    except pytest.skip.Exception:
        caught = False
    except Exception:
        caught = True
    else:
        caught = False
    assert caught, f"{test} does not notice what is wrong with {mutant.__name__}"
