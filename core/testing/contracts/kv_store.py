"""KvStoreContract: the laws of stores of KV pages (draft kind).

A store may forget at any time; it may never give back something else than what was written.
"""

from __future__ import annotations

import threading
from typing import ClassVar

import numpy as np

from core.interfaces.kv_store import KvStore, StoreConfig, page_keys
from core.interfaces.prefix_cache import CacheKey, Namespace
from core.testing.contracts.base import Contract

PAGE_BYTES = 4096
PAGE_SIZE = 4


class KvStoreContract(Contract):
    """What comes back is what was written, under the same key and layout, page by page, from any thread."""

    kind = "kv_store"

    num_pages: ClassVar[int] = 16
    """Pages of 4 KiB that the store holds at least, with `settings`."""

    keeps: ClassVar[bool] = False
    """Whether what was written is there again after `close`, in a store made with the same settings."""

    def store(self, layout: str = "float32/1x2x3/4") -> KvStore:
        made = self.plugin()(StoreConfig(PAGE_BYTES, layout), self.context())
        assert isinstance(made, KvStore)
        made.clear()
        return made

    def keys(self, start: int = 0, num: int = 4, tenant: str = "", layout: str = "float32/1x2x3/4") -> list[bytes]:
        tokens = np.arange(start, start + num * PAGE_SIZE, dtype=np.int32)
        return page_keys(CacheKey(Namespace(salt=tenant).encode(), tokens), PAGE_SIZE, layout)

    def test_keys_are_of_whole_prefixes(self) -> None:
        keys = self.keys(num=3)
        assert len(set(keys)) == 3
        assert all(len(key) == 32 for key in keys)
        assert self.keys(num=2) == keys[:2]
        assert not set(keys) & set(self.keys(num=3, tenant="other"))
        assert not set(keys) & set(self.keys(num=3, layout="other"))
        assert not set(keys) & set(self.keys(start=PAGE_SIZE, num=2)), "a page in the middle got the key of a beginning"

    def test_what_was_written_comes_back(self) -> None:
        store, keys = self.store(), self.keys(num=5)
        pages = [page(i) for i in range(5)]
        assert store.contains(keys) == 0
        assert store.write(keys, [memoryview(p) for p in pages]) == 5
        assert store.contains(keys) == 5
        assert read(store, keys) == pages
        assert read(store, keys[3:]) == pages[3:], "from the middle on"
        store.close()

    def test_the_caller_s_memory_is_not_kept(self) -> None:
        store, keys = self.store(), self.keys(num=1)
        buffer = page(1)
        store.write(keys, [memoryview(buffer)])
        buffer[:] = bytes(PAGE_BYTES)
        assert read(store, keys) == [page(1)]
        store.close()

    def test_leading_pages_only(self) -> None:
        store, keys = self.store(), self.keys(num=4)
        store.write([keys[0], keys[1], keys[3]], [memoryview(page(i)) for i in (0, 1, 3)])
        assert store.contains(keys) == 2
        assert read(store, keys) == [page(0), page(1)]
        assert store.contains(keys[2:]) == 0
        store.close()

    def test_other_tenants_and_layouts_see_nothing(self) -> None:
        store, keys = self.store(), self.keys(num=2)
        store.write(keys, [memoryview(page(i)) for i in range(2)])
        assert store.contains(self.keys(num=2, tenant="other")) == 0
        store.close()
        other = self.plugin()(StoreConfig(PAGE_BYTES, "bfloat16/other"), self.context())
        assert other.contains(keys) == 0, "a store made for another layout returned pages of this one"
        other.close()

    def test_removing_and_clearing(self) -> None:
        store, keys = self.store(), self.keys(num=4)
        store.write(keys, [memoryview(page(i)) for i in range(4)])
        store.remove([b"\0" * 32, keys[2]])
        assert store.contains(keys) == 2
        assert read(store, keys[3:]) == [page(3)]
        store.clear()
        assert [store.contains([key]) for key in keys] == [0, 0, 0, 0]
        assert store.stats().num_pages == 0
        store.close()

    def test_counts(self) -> None:
        store, keys = self.store(), self.keys(num=3)
        before = store.stats()
        store.write(keys, [memoryview(page(i)) for i in range(3)])
        store.write(keys, [memoryview(page(i)) for i in range(3)])
        after = store.stats()
        assert after.num_pages - before.num_pages == 3, "pages written twice count once"
        assert after.num_bytes > before.num_bytes
        store.close()

    def test_more_than_it_holds(self) -> None:
        """It forgets or stops; what it still claims to have is right."""
        store = self.store()
        total = self.num_pages * 3
        keys = [self.keys(start=1000 * i, num=1)[0] for i in range(total)]
        for i, key in enumerate(keys):
            written = store.write([key], [memoryview(page(i))])
            assert written in (0, 1)
            assert not written or store.contains([key]) == 1, "claimed to have stored a page that is not there"
        kept = [i for i, key in enumerate(keys) if store.contains([key])]
        assert len(kept) >= min(self.num_pages, total)
        for i in kept:
            got = read(store, [keys[i]])
            assert got in ([], [page(i)])
        store.close()

    def test_several_threads(self) -> None:
        store, errors = self.store(), list[str]()

        def work(number: int) -> None:
            keys = self.keys(start=10000 * number, num=3)
            for turn in range(20):
                store.write(keys, [memoryview(page(number * 100 + turn)) for _ in keys])
                got = read(store, keys)
                # A known key need not be written again, so the first turn's page may stay.
                fine = {bytes(page(number * 100 + t)) for t in range(turn + 1)}
                errors.extend(f"thread {number}" for p in got if bytes(p) not in fine)
                store.remove(keys)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, f"pages of another thread or torn pages: {errors[:3]}"
        store.close()

    def test_it_outlives_the_process(self) -> None:
        self.require(self.keeps, "keeps")
        store, keys = self.store(), self.keys(num=2)
        store.write(keys, [memoryview(page(i)) for i in range(2)])
        store.close()
        again = self.plugin()(StoreConfig(PAGE_BYTES, "float32/1x2x3/4"), self.context())
        assert read(again, keys) == [page(0), page(1)]
        again.clear()
        again.close()


def page(number: int) -> bytearray:
    """A page's content, different for each number and at every offset."""
    return bytearray(np.random.default_rng(number).integers(0, 256, PAGE_BYTES, np.uint8).tobytes())


def read(store: KvStore, keys: list[bytes]) -> list[bytearray]:
    """The leading pages that the store gives."""
    buffers = [bytearray(PAGE_BYTES) for _ in keys]
    num = store.read(keys, [memoryview(buffer) for buffer in buffers])
    assert 0 <= num <= len(keys)
    return buffers[:num]
