"""Doors that cloud platforms want: SageMaker's /ping and /invocations, Vertex AI's /vertex_generate.

They generate nothing themselves: a request is handed to the route that it is meant for.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.interfaces.errors import RequestError
from core.server import bodies
from core.server.context import Phase, ServerContext
from core.server.errors import NotReady
from core.server.openapi import described
from core.server.replies import json_reply
from core.server.routing import RequestRoute

# The field that tells what a body is -> who answers it.
TARGETS = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "text": "/generate",
    "input_ids": "/generate",
}


class InvocationBody(BaseModel):
    """POST /invocations: a body of another route."""

    model_config = ConfigDict(extra="allow")


class VertexBody(BaseModel):
    """POST /vertex_generate. instances: {"text": ...} or {"input_ids": [...]} each, all alike. parameters: sampling,
    by the native names."""

    model_config = ConfigDict(extra="forbid")
    instances: list[dict[str, Any]]
    parameters: dict[str, Any] | None = None


def routes(ctx: ServerContext) -> APIRouter:
    """The router of this family."""
    router = APIRouter(route_class=RequestRoute)

    @router.get("/ping", summary="Readiness, for SageMaker")
    async def ping() -> Response:
        if ctx.phase is not Phase.READY or ctx.engine is None or not ctx.engine.ready:
            raise NotReady("the server takes no requests", hint="ask /ready for what it waits for")
        return json_reply({})

    @router.post("/invocations", **described(InvocationBody, "Chat, completion or native request, for SageMaker"))
    async def invocations(request: Request) -> Response:
        body = await bodies.read(request, InvocationBody, ctx.settings.max_body_bytes)
        given = body.model_dump()
        target = next((path for name, path in TARGETS.items() if given.get(name) is not None), None)
        if target is None:
            raise RequestError(f"the body has none of {', '.join(TARGETS)}, so nobody answers it")
        return _Forwarded(request.app.router, target, given)

    @router.post("/vertex_generate", **described(VertexBody, "Native requests, for Vertex AI"))
    async def vertex_generate(request: Request) -> Response:
        body = await bodies.read(request, VertexBody, ctx.settings.max_body_bytes)
        native = {**_instances(body.instances), "sampling_params": body.parameters or {}}
        answer = _Gathered()
        await _Forwarded(request.app.router, "/generate", native)(request.scope, request.receive, answer.send)
        if answer.status != 200:
            return Response(answer.body, answer.status, answer.headers)
        return json_reply({"predictions": json.loads(answer.body)})

    return router


def _instances(instances: list[dict[str, Any]]) -> dict[str, Any]:
    """The native request's prompts."""
    if not instances:
        raise RequestError("instances is empty; give at least one", param="instances")
    for index, instance in enumerate(instances):
        if len(instance) != 1 or instance.keys() != instances[0].keys() or not instance.keys() <= {"text", "input_ids"}:
            where = f"instances[{index}]"
            raise RequestError(f'{where} must be {{"text": ...}} or {{"input_ids": [...]}}, all alike', param=where)
    (name,) = instances[0]
    return {name: [instance[name] for instance in instances]}


class _Forwarded(Response):
    """The answer of another route to a body, errors included."""

    def __init__(self, router: ASGIApp, path: str, body: dict[str, Any]) -> None:
        super().__init__()
        self._router = router
        self._path = path
        self._body = json.dumps(body).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: list[Message] = [{"type": "http.request", "body": self._body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        length = (b"content-length", str(len(self._body)).encode())
        headers = [length if name == b"content-length" else (name, value) for name, value in scope["headers"]]
        inner = {**scope, "path": self._path, "raw_path": self._path.encode(), "headers": headers}
        await self._router(inner, replay, send)


class _Gathered:
    """An answer that is taken instead of sent."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: dict[str, str] = {}
        self.body = b""

    async def send(self, message: Message) -> None:
        """What the route sends."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        self.body += message.get("body", b"")
