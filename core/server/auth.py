"""Keys: one ASGI layer before all routes. It finds out whose request it is, and ends what the request held."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server import errors, families
from core.server.admin_access import ADMITTED
from core.server.headers import header
from core.server.replies import json_reply
from core.server.tenants.table import Tenant, TenantTable
from core.server.tenants.visit import TIMEOUT_HEADER, Visit, current_visit

OPEN_PATHS = frozenset({"/", "/health", "/health_generate", "/ready", "/ping", "/metrics", "/favicon.ico"})
OPEN_PREFIXES = ("/page/",)
TENANT = "core.tenant"  # in the scope: the name, for logs


class ApiKeys:
    """Lets a request through if its path is open, no keys are asked for, or it carries one: as a bearer token or in
    `x-api-key`. The tenant's name is left in the scope; the visit is the context's."""

    def __init__(self, app: ASGIApp, table: TenantTable) -> None:
        self._app = app
        self._table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tenant = None if self._table.open else self._tenant(Headers(scope=scope))
        if tenant is None and not (self._table.open or _is_open(scope)):
            told_why = "missing or wrong API key; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            status, shape = families.shaped(scope["path"], 401, errors.body(told_why, 401, code="invalid_api_key"))
            await json_reply(shape, status, {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        if tenant is not None:
            scope[TENANT] = tenant.name
        visit = Visit(tenant, header(scope, TIMEOUT_HEADER.encode()))

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and (found := visit.headers()):
                MutableHeaders(scope=message).update(found)
            await send(message)

        token = current_visit.set(visit)
        try:
            await self._app(scope, receive, told)
        finally:
            current_visit.reset(token)
            visit.end()

    def _tenant(self, headers: Headers) -> Tenant | None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = (bearer if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
        return self._table.find([key.strip().encode("latin-1") for key in given])


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return (
        path in OPEN_PATHS
        or path.startswith(OPEN_PREFIXES)
        or scope["method"] == "OPTIONS"
        or bool(scope.get(ADMITTED))
    )
