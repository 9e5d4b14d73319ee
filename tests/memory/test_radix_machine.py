"""RadixCache against a naive model: a dict from every cached prefix to its page."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import CacheGeometry, CacheKey, CacheLock, MatchParams
from core.memory.radix import Node, RadixCache

TOKENS = st.lists(st.integers(0, 1), max_size=14)
SPACES = st.sampled_from([b"", b"n"])
Prefix = tuple[bytes, tuple[int, ...]]


class RadixMachine(RuleBasedStateMachine):
    @initialize(
        page_size=st.integers(1, 3),
        num_groups=st.integers(1, 2),
        policy=st.sampled_from(["lru", "lfu", "fifo", "priority"]),
    )
    def start(self, page_size: int, num_groups: int, policy: str) -> None:
        self.size, self.groups = page_size, num_groups
        self.cache = RadixCache(CacheGeometry(page_size, num_groups, policy), PluginContext())
        self.model: dict[Prefix, tuple[int, ...]] = {}
        self.locks: list[tuple[CacheLock, set[Prefix]]] = []
        self.next_page = 1

    def prefixes(self, namespace: bytes, tokens: list[int]) -> list[Prefix]:
        """Of whole pages, shortest first."""
        return [(namespace, tuple(tokens[:end])) for end in range(self.size, len(tokens) + 1, self.size)]

    @rule(tokens=TOKENS, namespace=SPACES, priority=st.integers(-1, 1))
    def insert(self, tokens: list[int], namespace: bytes, priority: int) -> None:
        prefixes = self.prefixes(namespace, tokens)
        pages = np.arange(self.next_page, self.next_page + len(prefixes) * self.groups, dtype=np.int32)
        pages = pages.reshape(self.groups, -1)
        self.next_page += pages.size
        result = self.cache.insert(CacheKey(namespace, np.array(tokens, np.int32)), pages, priority)
        assert result.matched_tokens == len(prefixes) * self.size
        assert result.first_new_page == sum(prefix in self.model for prefix in prefixes)
        for i, prefix in enumerate(prefixes[result.first_new_page :], result.first_new_page):
            self.model[prefix] = tuple(pages[:, i].tolist())

    @rule(tokens=TOKENS, namespace=SPACES, limit=st.integers(0, 15), touch=st.booleans(), lock=st.booleans())
    def match(self, tokens: list[int], namespace: bytes, limit: int, touch: bool, lock: bool) -> None:
        key = CacheKey(namespace, np.array(tokens, np.int32))
        found = self.cache.match(MatchParams(key, limit, touch))
        known = [p for p in self.prefixes(namespace, tokens[:limit]) if p in self.model]
        assert found.num_tokens == len(known) * self.size
        assert [tuple(column) for column in found.pages.T.tolist()] == [self.model[p] for p in known]
        if lock:
            self.locks.append((self.cache.lock(found.node), set(known)))

    @precondition(lambda self: getattr(self, "locks", None))
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        lock, _ = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        lock.release()
        lock.release()

    @rule(num=st.integers(0, 12))
    def evict(self, num: int) -> None:
        held = {prefix for _, prefixes in self.locks for prefix in prefixes}
        pages = self.cache.evict(num)
        gone = {tuple(column) for column in pages.T.tolist()}
        assert len(gone) == pages.shape[1] == min(num, len(self.model) - len(held))
        removed = {prefix for prefix, page in self.model.items() if page in gone}
        assert len(removed) == len(gone)
        assert not removed & held
        for prefix in removed:
            del self.model[prefix]
        for namespace, tokens in self.model:  # no prefix without the one before it
            assert len(tokens) == self.size or (namespace, tokens[: -self.size]) in self.model

    @precondition(lambda self: hasattr(self, "cache") and not self.locks)
    @rule()
    def reset(self) -> None:
        assert {tuple(column) for column in self.cache.reset().T.tolist()} == set(self.model.values())
        self.model.clear()

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "cache"):
            return
        held = {prefix for _, prefixes in self.locks for prefix in prefixes}
        stats = self.cache.stats()
        assert (stats.cached_pages, stats.evictable_pages) == (len(self.model), len(self.model) - len(held))
        nodes: list[Node] = list(self.cache._roots.values())
        for node in nodes:
            nodes.extend(node.children.values())
            for first, child in node.children.items():
                assert child.parent is node
                assert child.num_pages > 0
                assert child.start == node.start + node.num_pages
                assert first == child.tokens[: self.size].tobytes()
                if node.parent is not None:
                    assert node.locks >= child.locks
                    assert node.hits >= child.hits
                    assert node.priority >= child.priority
        assert stats.nodes == len(nodes) - len(self.cache._roots)


RadixMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestRadixMachine = RadixMachine.TestCase
