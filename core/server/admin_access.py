"""Who may use the admin routes: one ASGI layer, outside of the users' keys.

    admin key set      the admin key, from anywhere; no other key will do
    no admin key       `auto`: from this machine only, and with a user's key where there are such keys
                       `on`: from anywhere, with a user's key where there are such keys

"From this machine" is a connection from a loopback address that no proxy has forwarded and no foreign web page has
made. The admin key opens the admin routes and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.config.sections import ServerSettings
from core.server import errors
from core.server.replies import json_reply

# Set in the scope of a request that needs no user's key any more.
ADMITTED = "core.admin"
log = logging.getLogger("core.server")
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


class AdminAccess:
    """Asks for the admin key, or for a local client, on the given paths; others pass."""

    def __init__(self, app: ASGIApp, paths: Collection[str], key: str | None, anywhere: bool) -> None:
        """paths: of the admin routes. key: the admin key. anywhere: where there is no key, who may use them."""
        self._app = app
        self._paths = frozenset(paths)
        self._expected = _digest(key.encode()) if key else None
        self._anywhere = anywhere

    @staticmethod
    def arguments(paths: Collection[str], settings: ServerSettings, num_keys: int) -> dict[str, Any]:
        """What the layer is made with. num_keys: of users."""
        if settings.admin_routes == "on" and not (settings.admin_api_key or num_keys):
            log.warning("the admin routes are open to everybody who reaches this port; set --admin-api-key")
        return {"paths": paths, "key": settings.admin_api_key, "anywhere": settings.admin_routes == "on"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._expected is not None:
            if not self._has_key(headers):
                told = "this route takes the admin key; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
                shape = errors.body(told, 401, code="invalid_admin_key")
                await json_reply(shape, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
                return
            scope[ADMITTED] = True
        elif not self._anywhere and not is_local(scope, headers):
            told = "without an admin key this route answers requests from this machine only (set --admin-api-key)"
            await json_reply(errors.body(told, 403, code="admin_only_local"), 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Of equal length, and compared in constant time.
        return hmac.compare_digest(_digest(given.strip().encode("latin-1")), self._expected or b"")


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether the request was made on this machine, and not by a web page or through a proxy on it."""
    client = scope.get("client")
    if client is None or not _loopback(client[0]) or any(name in headers for name in FORWARDED):
        return False
    # A page from elsewhere can make a browser here send requests, also under a name that leads to this machine.
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    host = _host(headers.get("host", ""))
    if host != "localhost" and not _loopback(host):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _host(header: str) -> str:
    """The name or address in a Host header, without port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
