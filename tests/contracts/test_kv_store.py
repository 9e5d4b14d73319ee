"""The suite of KV stores: a store in memory and one on disk pass, broken ones do not."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from core.interfaces.context import PluginContext
from core.interfaces.kv_store import KvStore, StoreConfig, StoreStats
from core.testing.contracts.kv_store import KvStoreContract

from .running import failures


class MemoryStore(KvStore):
    """Pages in a dict, the oldest go first. `fault`: how it is broken."""

    capacity: ClassVar[int] = 16
    fault: ClassVar[str] = ""

    def __init__(self, config: StoreConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._pages: dict[bytes, bytes | memoryview] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def contains(self, keys: Sequence[bytes]) -> int:
        with self._lock:
            if self.fault == "counts gaps":
                return sum(key in self._pages for key in keys)
            num = next((i for i, key in enumerate(keys) if key not in self._pages), len(keys))
            self._hits, self._misses = self._hits + num, self._misses + (num < len(keys))
            return num

    def read(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> int:
        with self._lock:
            for i, (key, buffer) in enumerate(zip(keys, buffers, strict=True)):
                page = self._pages.get(key)
                if page is None:
                    return len(keys) if self.fault == "claims what it has not" else i
                buffer[:] = page[:-1] + b"\0" if self.fault == "truncates" else page
        return len(keys)

    def write(self, keys: Sequence[bytes], pages: Sequence[memoryview]) -> int:
        with self._lock:
            for key, page in zip(keys, pages, strict=True):
                name = os.urandom(32) if self.fault == "counts twice" and key in self._pages else key
                self._pages[name] = page if self.fault == "keeps the caller's memory" else bytes(page)
                while len(self._pages) > self.capacity:
                    last = self.fault == "drops the newest"
                    del self._pages[list(self._pages)[-1] if last else next(iter(self._pages))]
        return len(keys)

    def remove(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            for key in keys:
                if self.fault == "removes only the first":
                    self._pages.pop(keys[0], None)
                elif self.fault == "fails for unknown keys":
                    del self._pages[key]
                else:
                    self._pages.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._pages.clear()

    def stats(self) -> StoreStats:
        with self._lock:
            num = len(self._pages)
            return StoreStats(num, num * self.config.page_bytes, self._hits, self._misses)


class DiskStore(KvStore):
    """A file a page, in a folder for each layout; files appear whole or not at all."""

    def __init__(self, config: StoreConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        name = "shared" if ctx.settings.get("shared") else hashlib.sha256(config.layout.encode()).hexdigest()
        self._folder = Path(ctx.settings["folder"]) / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def contains(self, keys: Sequence[bytes]) -> int:
        return next((i for i, key in enumerate(keys) if not self._path(key).exists()), len(keys))

    def read(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> int:
        for i, (key, buffer) in enumerate(zip(keys, buffers, strict=True)):
            try:
                buffer[:] = self._path(key).read_bytes()
            except FileNotFoundError:
                return i
        return len(keys)

    def write(self, keys: Sequence[bytes], pages: Sequence[memoryview]) -> int:
        for key, page in zip(keys, pages, strict=True):
            part = self._folder / f"{key.hex()}.{threading.get_ident()}.part"
            part.write_bytes(page)
            part.rename(self._path(key))
        return len(keys)

    def remove(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def clear(self) -> None:
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def stats(self) -> StoreStats:
        num = len(list(self._folder.glob("*.page")))
        return StoreStats(num, num * self.config.page_bytes)

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.page"


class TestMemoryStore(KvStoreContract):
    implementation = MemoryStore


class TestDiskStore(KvStoreContract):
    implementation = DiskStore
    keeps = True

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.settings = {"folder": str(tmp_path_factory.mktemp("store"))}


FAULTS = ("counts gaps", "claims what it has not", "truncates", "counts twice", "keeps the caller's memory",
          "drops the newest", "removes only the first", "fails for unknown keys")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_stores_fail(fault: str) -> None:
    broken = type("Broken", (MemoryStore,), {"fault": fault})
    assert failures(type("Suite", (TestMemoryStore,), {"implementation": broken}))


def test_a_store_that_mixes_layouts_fails(tmp_path: Path) -> None:
    settings = {"folder": str(tmp_path), "shared": True}
    suite = type("Suite", (KvStoreContract,), {"implementation": DiskStore, "settings": settings})
    assert failures(suite) == {"test_other_tenants_and_layouts_see_nothing"}
