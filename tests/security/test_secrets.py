"""Keys are compared in constant time, and are found nowhere: no reply, log, metric, trace or printed configuration."""

from __future__ import annotations

import ast
import hmac
import logging
from pathlib import Path
from typing import Any

import pytest

import core
from core.server import admin_access
from core.server.tenants import table
from core.testing.server import MemoryServer, memory_server
from tests.security.conftest import ADMIN_KEY, KEY

SERVER = Path(core.__file__).parent / "server"
SECRETS = (KEY, ADMIN_KEY)
GETS = (
    "/", "/health", "/ready", "/metrics", "/server_info", "/get_server_info", "/model_info", "/v1/models", "/v1/loads",
    "/openapi.json", "/api/tags", "/api/version", "/nowhere", "/v1/models/none", "/v1/responses/none",
)  # fmt: skip


@pytest.mark.parametrize("module", [table, admin_access])
def test_keys_are_compared_by_compare_digest_alone(
    server: MemoryServer, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """Whoever is let in is let in by it: where it says no to everything, nobody is."""
    seen: list[tuple[Any, Any]] = []

    def never(given: bytes, known: bytes) -> bool:
        seen.append((given, known))
        return False

    path, key = ("/v1/models", KEY) if module is table else ("/flush_cache", ADMIN_KEY)
    ask = server.client.get if module is table else server.client.post
    headers = {"authorization": f"Bearer {key}"}
    assert ask(path, headers=headers).status_code == 200
    monkeypatch.setattr(hmac, "compare_digest", never)
    assert ask(path, headers=headers).status_code == 401
    assert seen
    assert all(len(given) == len(known) == 32 for given, known in seen)  # hashes: lengths of keys tell nothing


def test_no_other_comparison_of_keys_in_the_source() -> None:
    """Equality of something that is named as a key or a digest, anywhere in the layers that know keys."""
    found = []
    for path in (SERVER / "auth.py", SERVER / "admin_access.py", *(SERVER / "tenants").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare) or not any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                continue
            text = ast.unparse(node)
            if any(name in text.lower() for name in ("key", "digest", "secret", "bearer", "given")):
                found.append(f"{path.name}:{node.lineno}: {text}")
    # The name of the scheme, and of a way to isolate caches.
    harmless = ("scheme.lower() == 'bearer'", "self._settings.cache_isolation == 'key'", "scheme.lower() != 'bearer'")
    assert not [one for one in found if not one.endswith(harmless)]


@pytest.mark.parametrize(
    "authorization", [KEY, f"Bearer {KEY}", "Bearer wrong", f"Basic {KEY}", "Bearer", "", "Bearer \xff"]
)
@pytest.mark.parametrize("path", GETS)
def test_replies_hold_no_key(server: MemoryServer, path: str, authorization: str) -> None:
    reply = server.client.get(path, headers={"authorization": authorization.encode("latin-1")})
    told = reply.text + str(reply.headers)
    assert not any(secret in told for secret in SECRETS)
    assert "Traceback" not in told
    assert 'File "' not in told


def test_logs_of_whole_bodies_hold_no_key(server: MemoryServer, caplog: pytest.LogCaptureFixture) -> None:
    body = {
        "messages": [{"role": "user", "content": f"my key is {KEY} and {ADMIN_KEY}"}], "max_tokens": 1, "api_key": "abc-1",  # noqa: E501
        "cache_salt": "salt-7781", "metadata": {"deep": [{"password": "pw-5512", "access_token": "at-9913"}]},
    }  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        server.client.post("/v1/chat/completions", json=body)
        server.client.post("/v1/chat/completions", json=body, params={"api_key": KEY})
        server.client.post("/flush_cache", headers={"authorization": f"Bearer {ADMIN_KEY}"})
        server.client.get(f"/v1/models/{KEY}")
    told = "".join(
        f"{record.getMessage()} {vars(record)}" for record in caplog.records if record.name.startswith("core")
    )
    assert "request received" in told
    for secret in (*SECRETS, "abc-1", "salt-7781", "pw-5512", "at-9913"):
        assert secret not in told


def test_an_error_nobody_expected_says_nothing(server: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError(f"secret {KEY} at {__file__}")

    monkeypatch.setattr(type(server.context), "ready_service", broken)
    for path in ("/v1/models", "/server_info"):
        reply = server.client.get(path)
        assert reply.status_code == 500
        assert reply.json()["error"]["message"] == "internal error; the server's log has more"
        assert __file__ not in reply.text + str(reply.headers)


def test_what_a_key_may_see_of_the_machine(server: MemoryServer) -> None:
    """Without the key, no path of this machine is shown by any route that needs none."""
    home = str(Path(core.__file__).parent)
    for path in ("/", "/health", "/ready", "/metrics", "/ping", "/health_generate"):
        reply = server.client.get(path, headers={"authorization": ""})
        assert home not in reply.text + str(reply.headers)
        assert "site-packages" not in reply.text


def test_printed_configuration_has_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from core.cli.main import main

    monkeypatch.setattr("sys.argv", ["core", "config", "show", "--api-key", KEY, "--admin-api-key", ADMIN_KEY])
    with pytest.raises(SystemExit):
        raise SystemExit(main())
    told = capsys.readouterr()
    assert "api_key" in told.out
    assert not any(secret in told.out + told.err for secret in SECRETS)


def test_keys_of_the_file_stand_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As far as the file has them as they are; of hashed ones nobody knows what to look for."""
    file = tmp_path / "keys.toml"
    file.write_text('[[keys]]\nname = "one"\nkey = ["file-key-1a", "file-key-2b"]\n')
    file.chmod(0o600)
    with (
        memory_server(api_keys_file=str(file), log_requests=True, log_requests_level=3) as running,
        caplog.at_level(logging.DEBUG),
    ):
        running.client.headers["authorization"] = "Bearer file-key-1a"
        body = {"messages": [{"role": "user", "content": "they are file-key-1a and file-key-2b"}], "max_tokens": 1}
        assert running.client.post("/v1/chat/completions", json=body).status_code == 200
        running.client.get("/v1/models/file-key-2b")
        file.write_text('[[keys]]\nname = "one"\nkey = ["file-key-1a", "file-key-3c"]\n')
        assert running.context.tenants.reload()
        running.client.get("/v1/models/file-key-3c")
    told = "".join(f"{one.getMessage()} {vars(one)}" for one in caplog.records if one.name.startswith("core"))
    assert "request received" in told
    assert "file-key" not in told


def test_nobody_writes_lines_of_his_own_into_the_log(server: MemoryServer, caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\n2026-01-01 INFO core.server: all is well"
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    with caplog.at_level(logging.DEBUG):
        assert server.client.post("/abort_request", json={"rid": forged}, headers=admin).status_code == 200
        body = {"prompt": "a", "max_tokens": 1, forged: 1, "model": forged}
        server.client.post("/v1/completions", json=body, headers={"x-request-id": "a b"})
        server.client.get("/v1/models/x%0A2026-01-01 INFO")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("core")]
    assert any("aborted" in line for line in lines)
    assert not [line for line in lines if "\n" in line]
