"""The API key: one ASGI layer before all routes."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.server import errors, families
from core.server.admin_access import ADMITTED
from core.server.replies import json_reply

OPEN_PATHS = frozenset({"/", "/health", "/health_generate", "/ready", "/ping", "/metrics", "/favicon.ico"})
OPEN_PREFIXES = ("/page/",)


class ApiKey:
    """Lets a request through if its path is open or it carries the key, as a bearer token or in x-api-key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allowed(scope):
            await self._app(scope, receive, send)
            return
        told = "missing or wrong API key; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        status, shape = families.shaped(scope["path"], 401, errors.body(told, 401, code="invalid_api_key"))
        await json_reply(shape, status, {"www-authenticate": "Bearer"})(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        path = scope["path"]
        if scope.get(ADMITTED):  # the admin layer has seen a better key
            return True
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES) or scope["method"] == "OPTIONS":
            return True
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = (bearer if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
        # Compared in constant time, both always; the key itself decides nothing before the comparison.
        same = [hmac.compare_digest(key.strip().encode("latin-1"), self._expected) for key in given]
        return any(same)
