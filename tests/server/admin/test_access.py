"""Who may use the admin routes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import Running
from starlette.datastructures import Headers

from core.config.sections import ServerSettings
from core.interfaces.errors import ConfigError
from core.server.admin import ALL_PATHS, routes
from core.server.admin_access import AdminAccess, is_local
from core.server.app import build_app
from core.server.plugin_routes import routes_of
from core.server.request_log import RequestLog
from core.server.tenants.table import TenantTable

LOCAL, REMOTE = "127.0.0.1", "10.1.2.3"


def ask(running: Running, path: str, client: str = LOCAL, key: str | None = None, **headers: str) -> httpx.Response:
    """POST as if from `client`."""
    if key is not None:
        headers["authorization"] = f"Bearer {key}"

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(running.ctx), client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            return await session.post(path, headers=headers)

    return asyncio.run(once())


def test_every_admin_route_is_guarded(server: Running) -> None:
    assert {route.path for route in routes_of(routes(server.ctx, RequestLog()))} == ALL_PATHS
    for path in ALL_PATHS:
        refused = ask(server, path, REMOTE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_only_local"), path


def test_without_keys_only_this_machine(server: Running) -> None:
    assert ask(server, "/flush_cache").status_code == 200
    assert httpx.post(f"{server.url}/flush_cache").status_code == 200
    assert ask(server, "/flush_cache", REMOTE).status_code == 403
    assert server.engine.flushed == 2


def test_with_a_users_key_only_this_machine_and_the_key(launch: Any) -> None:
    with launch(api_key="user") as running:
        assert ask(running, "/flush_cache", key="user").status_code == 200
        assert ask(running, "/flush_cache").status_code == 401
        assert ask(running, "/flush_cache", REMOTE, key="user").status_code == 403


def test_with_an_admin_key_that_key_from_anywhere_and_nothing_else(launch: Any) -> None:
    with launch(api_key="user", admin_api_key="admin") as running:
        assert ask(running, "/flush_cache", REMOTE, key="admin").status_code == 200
        assert ask(running, "/flush_cache", LOCAL, key="admin").status_code == 200
        for key in (None, "user", "admi", "admin2", ""):
            refused = ask(running, "/flush_cache", LOCAL, key=key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_admin_key"), key
            assert refused.headers["www-authenticate"] == "Bearer"
        assert ask(running, "/flush_cache", authorization="Basic admin").status_code == 401
        assert ask(running, "/flush_cache", REMOTE, **{"x-api-key": "admin"}).status_code == 200
        assert ask(running, "/flush_cache", **{"x-api-key": "user"}).status_code == 401
        # and it opens nothing else
        models = httpx.get(f"{running.url}/v1/models", headers={"authorization": "Bearer admin"})
        assert models.status_code == 401


def test_an_admin_key_without_users_keys(launch: Any) -> None:
    with launch(admin_api_key="admin") as running:
        assert ask(running, "/flush_cache").status_code == 401
        assert ask(running, "/flush_cache", REMOTE, key="admin").status_code == 200
        assert httpx.get(f"{running.url}/v1/models").status_code == 200


def test_on_opens_them_to_users(launch: Any) -> None:
    with launch(api_key="user", admin_routes="on") as running:
        assert ask(running, "/flush_cache", REMOTE, key="user").status_code == 200
        assert ask(running, "/flush_cache", REMOTE).status_code == 401
    with launch(admin_routes="on") as running:
        assert ask(running, "/flush_cache", REMOTE).status_code == 200


def test_off_means_there_are_none(launch: Any) -> None:
    with launch(admin_routes="off", admin_api_key="admin") as running:
        for path in ALL_PATHS:
            assert ask(running, path, key="admin").status_code == 404


def test_a_users_key_that_is_the_admin_key_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[[keys]]\nname = "search"\nkey = "the-same"\n')
    keys.chmod(0o600)
    for users in ({"api_key": "the-same"}, {"api_keys_file": str(keys)}):
        with pytest.raises(ConfigError, match="would be an administrator") as caught:
            TenantTable(ServerSettings(admin_api_key="the-same", **users))
        assert caught.value.field == "server.admin_api_key"
        assert "the-same" not in str(caught.value)


def test_open_to_everybody_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    AdminAccess.arguments(ALL_PATHS, ServerSettings(admin_routes="on"), 1)
    AdminAccess.arguments(ALL_PATHS, ServerSettings(), 0)
    assert not caplog.records
    AdminAccess.arguments(ALL_PATHS, ServerSettings(admin_routes="on"), 0)
    assert "open to everybody" in caplog.text


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        (("127.0.0.1", 1), {"host": "localhost:30000"}, True),
        (("127.8.9.1", 1), {"host": "127.0.0.1"}, True),
        (("::1", 1), {"host": "[::1]:30000"}, True),
        (("::ffff:127.0.0.1", 1), {"host": "LOCALHOST"}, True),
        (("127.0.0.1", 1), {"host": "localhost:1", "origin": "http://localhost:1"}, True),
        (("127.0.0.1", 1), {"host": "localhost", "sec-fetch-site": "same-origin"}, True),
        (("10.0.0.1", 1), {"host": "localhost"}, False),
        (("::2", 1), {"host": "localhost"}, False),
        (("testclient", 1), {"host": "localhost"}, False),
        (None, {"host": "localhost"}, False),
        # a proxy on this machine
        (("127.0.0.1", 1), {"host": "localhost", "x-forwarded-for": "127.0.0.1"}, False),
        (("127.0.0.1", 1), {"host": "localhost", "forwarded": "for=1.2.3.4"}, False),
        (("127.0.0.1", 1), {"host": "localhost", "via": "1.1 cache"}, False),
        (("127.0.0.1", 1), {"host": "api.example.org"}, False),
        # a web page that is open in a browser on this machine
        (("127.0.0.1", 1), {"host": "localhost:1", "origin": "http://evil.example"}, False),
        (("127.0.0.1", 1), {"host": "localhost:1", "origin": "http://localhost:2"}, False),
        (("127.0.0.1", 1), {"host": "localhost:1", "origin": "null"}, False),
        (("127.0.0.1", 1), {"host": "localhost", "sec-fetch-site": "cross-site"}, False),
        (("127.0.0.1", 1), {"host": "rebound.example:1", "origin": "http://rebound.example:1"}, False),
        (("127.0.0.1", 1), {}, False),
    ],
)  # fmt: skip
def test_what_counts_as_this_machine(client: tuple[str, int] | None, headers: dict[str, str], local: bool) -> None:
    assert is_local({"client": client}, Headers(headers)) is local
