"""TenantTable: which tenant a key belongs to. Read at start, and again on SIGHUP."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from core.config.sections import ServerSettings
from core.interfaces.errors import ConfigError
from core.server.tenants.keys import FIELD, KeyEntry, digest, read_keys
from core.server.tenants.limits import TokenBucket

log = logging.getLogger("core.server")
DEFAULT_TENANT = "default"  # of `api_key`


class Tenant:
    """One tenant: what its key allows, and what it uses now.

    requests, tokens: buckets, None without limit. concurrent: HTTP requests that generate now. The counters are for
    metrics: generated, prompt and cached tokens, admitted requests, and refused ones by the limit.
    """

    def __init__(self, entry: KeyEntry, isolated: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.concurrent = 0
        self.admitted = 0
        self.refused: Counter[str] = Counter()
        self.num_tokens: Counter[str] = Counter()
        self.renew(entry, isolated)

    @property
    def name(self) -> str:
        return self.entry.name

    def renew(self, entry: KeyEntry, isolated: bool) -> None:
        """Other limits from now on; what was used stays used."""
        self.entry = entry
        self.isolated = isolated
        self._digest = entry.digests[0]
        self.requests = self._bucket(self.requests, entry.requests_per_minute)
        self.tokens = self._bucket(self.tokens, entry.tokens_per_minute)

    def _bucket(self, old: TokenBucket | None, per_minute: float | None) -> TokenBucket | None:
        if per_minute is None:
            return None
        if old is None:
            return TokenBucket(per_minute, self._clock)
        return old if old.per_minute == per_minute else old.resized(per_minute)

    def salt(self, given: str) -> str:
        """The prefix cache's salt: the client's own, below one that only this tenant's key gives."""
        if not self.isolated:
            return given
        text = f"cache isolation\0{self.name}\0{given}"
        return hmac.new(self._digest, text.encode(), hashlib.sha256).hexdigest()


class TenantTable:
    """Tenants by name, found by key. open: no key is asked for."""

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError if the file of keys cannot be used."""
        self._settings = settings
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}
        self._keys: list[tuple[bytes, Tenant]] = []
        self.open = not (settings.api_key or settings.api_keys_file)
        self._take(self._entries())

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Keys in plain text, as far as they are known, the admin's too: what no log may hold."""
        plain = [key for tenant in self for key in tenant.entry.plain_keys]
        return (*plain, *filter(None, [self._settings.admin_api_key]))

    def find(self, keys: list[bytes]) -> Tenant | None:
        """The tenant of the first of `keys` that is one. Every key is hashed and compared with every other, in
        constant time: how long it takes tells nothing about the keys."""
        found: list[Tenant | None] = []
        for key in keys:
            given = digest(key)
            same = None
            for known, tenant in self._keys:
                if hmac.compare_digest(given, known):
                    same = tenant
            found.append(same)
        return next((tenant for tenant in found if tenant is not None), None)

    def reload(self) -> bool:
        """Read the file again. If it cannot be used the keys stay as they are, and the log says why."""
        try:
            entries = self._entries()
        except ConfigError as error:
            log.error("the keys stay as they are: %s", error)
            return False
        self._take(entries)
        log.info("%d tenants have keys", len(self))
        return True

    def _entries(self) -> list[KeyEntry]:
        settings = self._settings
        entries = read_keys(Path(settings.api_keys_file)) if settings.api_keys_file else []
        if settings.api_key:
            own = KeyEntry(name=DEFAULT_TENANT, key=settings.api_key, priority_range=(-(2**31), 2**31 - 1))
            for entry in entries:
                if entry.name == DEFAULT_TENANT or set(entry.digests) & set(own.digests):
                    raise ConfigError(
                        f"{entry.name!r} in {settings.api_keys_file} clashes with --api-key, which is the tenant "
                        f"{DEFAULT_TENANT!r}",
                        field=FIELD,
                        hint="drop --api-key, or give the entry another name and key",
                    )
            entries = [own, *entries]
        if settings.admin_api_key:
            admin = digest(settings.admin_api_key.encode())
            for entry in entries:
                if admin in entry.digests:
                    raise ConfigError(
                        f"the admin key is also the key of the tenant {entry.name!r}, who would be an administrator",
                        field="server.admin_api_key",
                        hint="choose two keys; without --admin-api-key the admin routes answer this machine only",
                    )
        return entries

    def _take(self, entries: list[KeyEntry]) -> None:
        tenants: dict[str, Tenant] = {}
        for entry in entries:
            isolated = entry.cache_isolation
            if isolated is None:
                isolated = self._settings.cache_isolation == "key"
            tenant = self._tenants.get(entry.name)
            if tenant is None:
                tenant = Tenant(entry, isolated, self._clock)
            else:
                tenant.renew(entry, isolated)
            tenants[entry.name] = tenant
        self._tenants = tenants
        self._keys = [(found, tenant) for tenant in tenants.values() for found in tenant.entry.digests]
