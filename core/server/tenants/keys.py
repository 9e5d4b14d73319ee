"""The file of keys: TOML, one `[[keys]]` table per tenant.

    [[keys]]
    name = "search"                 # the tenant, as in metrics
    key_sha256 = "9f86d0…"          # of the key, 64 hexadecimal digits; or `key = "…"`; a list: any of them
    weight = 2.0                    # share of a full server, beside other tenants' weights
    priority = 0                    # of requests that name none
    priority_range = [-10, 10]      # what requests may name; default: only `priority`
    requests_per_minute = 600
    tokens_per_minute = 100_000     # of prompts and answers
    max_concurrent = 16             # requests at a time
    max_tokens = 2048               # longer answers are cut, with the finish reason "length"
    cache_isolation = true          # shares no cached prefix with other tenants
    models = ["small"]              # default: all that are served

Only name and key are needed; a limit that is not there does not limit.
"""

from __future__ import annotations

import hashlib
import logging
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from core.config.sections import Section
from core.interfaces.errors import ConfigError

FIELD = "server.api_keys_file"
log = logging.getLogger("core.server")

_Digest = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
_Secret = Annotated[str, Field(min_length=1)]


class KeyEntry(Section):
    """One `[[keys]]` table."""

    name: str = Field(pattern=r"^[A-Za-z0-9._:@/-]{1,64}$")
    key: _Secret | tuple[_Secret, ...] = Field((), repr=False)
    key_sha256: _Digest | tuple[_Digest, ...] = Field((), repr=False)
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    priority_range: tuple[int, int] | None = None
    requests_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_concurrent: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    cache_isolation: bool | None = None
    models: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> KeyEntry:
        if not self.key and not self.key_sha256:
            raise ValueError("it has neither key nor key_sha256")
        low, high = self.priorities
        if not low <= self.priority <= high:
            raise ValueError(f"priority {self.priority} is not in priority_range [{low}, {high}]")
        return self

    @property
    def priorities(self) -> tuple[int, int]:
        """Lowest and highest priority that a request may have."""
        return self.priority_range or (self.priority, self.priority)

    @property
    def plain_keys(self) -> tuple[str, ...]:
        """Keys that the file has as they are."""
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of each key."""
        hashed = (self.key_sha256,) if isinstance(self.key_sha256, str) else self.key_sha256
        return (*(digest(key.encode()) for key in self.plain_keys), *(bytes.fromhex(text) for text in hashed))


def digest(key: bytes) -> bytes:
    """SHA-256 of a key as it is sent."""
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> list[KeyEntry]:
    """The entries of a file. Raises ConfigError; no message holds a key."""
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode())
    except OSError as error:
        raise _error(path, f"it cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # The decoder's message tells a place, not what stands there.
        raise _error(path, f"it is no TOML: {error}") from None
    tables = data.get("keys")
    if set(data) - {"keys"} or not isinstance(tables, list) or not tables:
        raise _error(path, "it must consist of [[keys]] tables, one or more")
    entries = [_entry(path, at, table) for at, table in enumerate(tables)]
    _check_unique(path, entries)
    if stat.S_IMODE(path.stat().st_mode) & 0o007 and any(entry.key for entry in entries):
        log.warning("%s holds keys and everybody may read it: `chmod o-rwx` it, or use key_sha256", path)
    return entries


def _entry(path: Path, at: int, table: Any) -> KeyEntry:
    name = table.get("name") if isinstance(table, dict) else None
    where = f"keys[{at}]" + (f" ({name!r})" if isinstance(name, str) and len(name) <= 64 else "")
    try:
        return KeyEntry.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part in KeyEntry.model_fields)
        unknown = [str(part) for part in first["loc"]] if first["type"] == "extra_forbidden" else []
        told = first["msg"].removeprefix("Value error, ")
        if unknown:
            told = f"there is no field {unknown[0]!r}; there are {', '.join(KeyEntry.model_fields)}"
        raise _error(path, f"{where}{': ' + field if field else ''}: {told}") from None


def _check_unique(path: Path, entries: list[KeyEntry]) -> None:
    names: set[str] = set()
    owners: dict[bytes, str] = {}
    for entry in entries:
        if entry.name in names:
            raise _error(path, f"two entries have the name {entry.name!r}; one entry can have a list of keys")
        names.add(entry.name)
        for found in entry.digests:
            if found in owners:
                raise _error(path, f"{owners[found]!r} and {entry.name!r} have the same key")
            owners[found] = entry.name


def _error(path: Path, told: str) -> ConfigError:
    return ConfigError(
        f"api_keys_file {path}: {told}", field=FIELD, value=str(path), hint="docs/guide/tenants.md has the format"
    )
