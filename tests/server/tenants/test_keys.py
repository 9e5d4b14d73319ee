"""The file of keys: what it may say, what it is told when it is wrong, and that no message holds a key."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.config.sections import ServerSettings
from core.interfaces.errors import ConfigError
from core.server.main import _Life
from core.server.tenants.keys import digest, read_keys
from core.server.tenants.table import DEFAULT_TENANT, TenantTable

SECRET = "hush-hush-1234"


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_every_field(tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"other").hexdigest()
    path = file(
        tmp_path,
        f"""
        [[keys]]
        name = "search"
        key = ["{SECRET}", "next"]
        key_sha256 = "{hashed}"
        weight = 2.5
        priority = 1
        priority_range = [-3, 4]
        requests_per_minute = 60
        tokens_per_minute = 1_000
        max_concurrent = 2
        max_tokens = 64
        cache_isolation = true
        models = ["tiny"]

        [[keys]]
        name = "plain"
        key = "k"
        """,
    )
    search, plain = read_keys(path)
    assert (search.weight, search.priorities, search.max_tokens, search.models) == (2.5, (-3, 4), 64, ("tiny",))
    assert len(search.digests) == 3
    assert search.digests[2].hex() == hashed
    assert plain.priorities == (0, 0)
    assert plain.requests_per_minute is plain.cache_isolation is plain.models is None
    assert SECRET not in repr(search)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "[[keys]] tables"),
        ("keys = 3", "[[keys]] tables"),
        (f'key = "{SECRET}"', "[[keys]] tables"),
        ("[[keys]", "no TOML"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}"\nlimit = 3', "no field 'limit'"),
        ('[[keys]]\nname = "a"', "neither key nor key_sha256"),
        (f'[[keys]]\nname = "a b"\nkey = "{SECRET}"', "keys[0] ('a b'): name"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}"\nweight = 0', "weight: Input should be greater than 0"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}"\nweight = nan', "weight"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}"\npriority = 5\npriority_range = [0, 3]', "not in priority_range"),
        (f'[[keys]]\nname = "a"\nkey_sha256 = "{SECRET}"', "key_sha256"),
        (f'[[keys]]\nname = "a"\nkey = [["{SECRET}"]]', "key"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}"\n[[keys]]\nname = "a"\nkey = "b"', "the name 'a'"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}"\n[[keys]]\nname = "b"\nkey = "{SECRET}"', "have the same key"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET}\n', "no TOML"),
    ],
)
def test_what_is_wrong_is_named_and_no_key_is(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_keys(file(tmp_path, text))
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.field == "server.api_keys_file"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        TenantTable(ServerSettings(api_keys_file=str(tmp_path / "none.toml")))


def test_a_file_that_everybody_may_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file(tmp_path, f'[[keys]]\nname = "a"\nkey = "{SECRET}"')
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "core.server"):
        read_keys(path)
    assert "chmod" in caplog.text
    assert SECRET not in caplog.text


def test_keys_lead_to_tenants(tmp_path: Path) -> None:
    path = file(tmp_path, '[[keys]]\nname = "a"\nkey = ["one", "zwei-ü"]\n[[keys]]\nname = "b"\nkey = "three"')
    table = TenantTable(ServerSettings(api_key="root", api_keys_file=str(path)))
    expected = {"one": "a", "zwei-ü": "a", "three": "b", "root": DEFAULT_TENANT}
    for key, name in expected.items():
        found = table.find([b"", key.encode()])
        assert found is not None
        assert found.name == name
    for wrong in (b"", b"on", b"onee", b"a"):
        assert table.find([wrong]) is None
    assert not table.open
    assert TenantTable(ServerSettings()).open


@pytest.mark.parametrize("entry", [f'name = "{DEFAULT_TENANT}"\nkey = "x"', 'name = "a"\nkey = "root"'])
def test_the_single_key_does_not_clash(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match="clashes with --api-key"):
        TenantTable(ServerSettings(api_key="root", api_keys_file=str(file(tmp_path, f"[[keys]]\n{entry}"))))


def test_a_tenant_is_no_administrator(tmp_path: Path) -> None:
    path = file(tmp_path, '[[keys]]\nname = "a"\nkey = "root"')
    with pytest.raises(ConfigError, match="who would be an administrator"):
        TenantTable(ServerSettings(admin_api_key="root", api_keys_file=str(path)))


async def test_sighup_reads_again() -> None:
    read = asyncio.Event()
    life: Any = _Life.__new__(_Life)
    life._ctx = SimpleNamespace(tenants=SimpleNamespace(reload=read.set))
    with life._signals():
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(read.wait(), 5)


def test_the_page_shows_a_file_that_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "guide" / "tenants.md").read_text()
    search, research = read_keys(file(tmp_path, page.split("```toml\n")[1].split("```")[0]))
    assert search.digests == (digest(b"secret"),)
    assert len(research.digests) == 2


def test_reading_again_keeps_what_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    path = file(tmp_path, '[[keys]]\nname = "a"\nkey = "one"\ntokens_per_minute = 100')
    table = TenantTable(ServerSettings(api_keys_file=str(path)), lambda: now_s)
    tenant = table.find([b"one"])
    assert tenant is not None
    assert tenant.tokens is not None
    tenant.tokens.take(130)
    tenant.concurrent = 2
    file(tmp_path, '[[keys]]\nname = "a"\nkey = "two"\ntokens_per_minute = 1000\nweight = 3.0')
    assert table.reload()
    assert table.find([b"one"]) is None
    assert table.find([b"two"]) is tenant
    assert (tenant.concurrent, tenant.entry.weight) == (2, 3.0)
    assert tenant.tokens.level <= 1000 - 100  # a new limit is no amnesty
    file(tmp_path, '[[keys]]\nname = "a"\nkey = ""')
    assert not table.reload()
    assert "stay as they are" in caplog.text
    assert table.find([b"two"]) is tenant


def test_salts(tmp_path: Path) -> None:
    text = "".join(f'[[keys]]\nname = "{n}"\nkey = "{n}"\ncache_isolation = {i}\n' for n, i in
                   (("a", "true"), ("b", "true"), ("c", "false")))  # fmt: skip
    path = file(tmp_path, text)
    a, b, c = TenantTable(ServerSettings(api_keys_file=str(path), cache_isolation="key"))
    assert len({a.salt(""), a.salt("x"), b.salt(""), b.salt("x")}) == 4
    assert a.salt("x") == a.salt("x")
    assert c.salt("x") == "x"
    again = next(iter(TenantTable(ServerSettings(api_keys_file=str(path)))))
    assert again.salt("x") == a.salt("x")  # the same in every process that has the file
