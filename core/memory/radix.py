"""RadixCache: a page-aligned radix tree per namespace, from token prefixes to pages.

An edge holds a run of whole pages; children are found by the bytes of their first page's tokens, runs are
compared as arrays. A lock holds a node and everything above it, so an unlocked node has no locked descendant
and `cached - locked` pages can be evicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import (
    CacheGeometry,
    CacheKey,
    CacheLock,
    CacheStats,
    InsertResult,
    Int32,
    MatchParams,
    MatchResult,
    PrefixCache,
)
from core.interfaces.spec import StateKind
from core.memory.eviction import Evictable, make_order


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """`tokens` [n] int32 is the whole prefix from the start of the text. "stored": its pages from token `start` on
    are now cached. "removed": those from `start` on are not any more. "cleared": nothing is (other fields empty)."""

    kind: Literal["stored", "removed", "cleared"]
    namespace: bytes = b""
    start: int = 0
    tokens: Int32 | None = None


class Node(Evictable):
    """A run of pages. start: pages above it. tokens [k * page_size]; pages [G, k]. parent None: a root, k = 0."""

    __slots__ = ("pages", "parent", "start", "tokens")

    def __init__(self, parent: Node | None, start: int, tokens: Int32, pages: Int32, priority: int = 0) -> None:
        super().__init__(priority)
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.pages = pages

    @property
    def num_pages(self) -> int:
        return self.pages.shape[1]


@dataclass(frozen=True, slots=True)
class _Position:
    """The prefix of `end` pages that ends in `node`, or above it once the node has been split."""

    node: Node
    end: int


class _Lock:
    """Holds a node and all above it; the empty prefix needs no holding."""

    __slots__ = ("_cache", "_node")

    def __init__(self, cache: RadixCache, node: Node | None) -> None:
        self._cache = cache
        self._node = node

    def release(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            self._cache._unlock(node)


class RadixCache(PrefixCache):
    """Settings (`--set radix.events=true`): events, keep a list of CacheEvent for routers; off by default."""

    state_kinds: ClassVar[frozenset[StateKind]] = frozenset(
        {StateKind.FULL, StateKind.SLIDING_WINDOW, StateKind.MLA_LATENT}
    )

    def __init__(self, geometry: CacheGeometry, ctx: PluginContext) -> None:
        super().__init__(geometry, ctx)
        settings = ctx.settings
        on = settings.get("events", False) if isinstance(settings, Mapping) else getattr(settings, "events", False)
        self._events: list[CacheEvent] | None = [] if on else None
        self.order = make_order(geometry.eviction)
        self._nothing = MatchResult(0, np.empty((geometry.num_groups, 0), np.int32))
        self._nowhere = self._new_root(None)
        self._clear()

    def _clear(self) -> None:
        self._roots: dict[bytes, Node] = {}
        self._namespaces: dict[Node, bytes] = {}
        self._num_nodes = 0
        self._cached_pages = 0
        self._locked_pages = 0

    def match(self, params: MatchParams) -> MatchResult:
        key, size = params.key, self.geometry.page_size
        limit = max(min(params.max_tokens, len(key.tokens)), 0) // size
        node, end = self._walk(key, limit)
        if not end:
            return self._nothing
        if params.touch:
            node = self._cut(node, end)
            step: Node | None = node
            while step is not None and step.parent is not None:
                step.hits += 1
                self.order.used(step)
                step = step.parent
        return MatchResult(end * size, self._pages_to(node, end), _Position(node, end))

    def lock(self, node: Any) -> CacheLock:
        if node is None:
            return _Lock(self, None)
        position = cast(_Position, node)
        held = self._cut(position.node, position.end)
        step = held
        while step.parent is not None:
            if not step.locks:
                self.order.locked(step)
                self._locked_pages += step.num_pages
            step.locks += 1
            step = step.parent
        return _Lock(self, held)

    def insert(self, key: CacheKey, pages: Int32, priority: int = 0) -> InsertResult:
        size = self.geometry.page_size
        total = len(key.tokens) // size
        if pages.shape != (self.geometry.num_groups, total):
            raise ValueError(f"pages have shape {pages.shape}, expected {(self.geometry.num_groups, total)}")
        if not total:
            return InsertResult(0, 0)
        node, end = self._walk(key, total)
        if end:
            node = self._cut(node, end)
        elif key.namespace in self._roots:
            node = self._roots[key.namespace]
        else:
            node = self._roots[key.namespace] = self._new_root(key.namespace)
        if end < total:
            tokens = np.array(key.tokens[end * size : total * size], np.int32)
            child = Node(node, end, tokens, np.array(pages[:, end:total], np.int32), priority)
            node.children[tokens[:size].tobytes()] = child
            self._num_nodes += 1
            self._cached_pages += total - end
            self.order.created(child)
            self._note("stored", child)
            node = child
        step = node
        while step.parent is not None:
            step.priority = max(step.priority, priority)
            self.order.used(step)
            step = step.parent
        return InsertResult(total * size, end, _Position(node, total))

    def evict(self, num_pages: int) -> Int32:
        parts: list[Int32] = []
        while num_pages > 0:
            victim = self.order.victim()
            if victim is None:
                break
            node = cast(Node, victim)
            assert not node.children, "only a leaf may go"
            assert not node.locks, "only an unlocked leaf may go"
            if node.num_pages > num_pages:
                parts.append(self._shorten(node, num_pages))
            else:
                parts.append(self._remove(node))
            num_pages -= parts[-1].shape[1]
        return np.concatenate(parts, axis=1) if parts else np.empty((self.geometry.num_groups, 0), np.int32)

    def stats(self) -> CacheStats:
        return CacheStats(self._cached_pages, self._cached_pages - self._locked_pages, self._num_nodes)

    def reset(self) -> Int32:
        assert not self._locked_pages, "reset with a lock held"
        nodes = [*self._roots.values()]
        for node in nodes:  # grows while it is walked
            nodes.extend(node.children.values())
        pages = [node.pages for node in nodes]
        self.order = make_order(self.geometry.eviction)
        self._clear()
        if self._events is not None:
            self._events.append(CacheEvent("cleared"))
        return np.concatenate([np.empty((self.geometry.num_groups, 0), np.int32), *pages], axis=1)

    def events(self) -> list[Any]:
        events = self._events or []
        if events:
            self._events = []
        return list(events)

    def _walk(self, key: CacheKey, limit: int) -> tuple[Node, int]:
        """The node in which the longest cached prefix of at most `limit` pages ends, and its length in pages.
        Length 0 comes with a node of no meaning."""
        size, tokens = self.geometry.page_size, key.tokens
        node = self._roots.get(key.namespace)
        if node is None:
            return self._nowhere, 0
        end = 0
        while end < limit:
            first = end * size
            child = node.children.get(tokens[first : first + size].tobytes())
            if child is None:
                break
            num = min(child.num_pages, limit - end)
            differ = child.tokens[: num * size] != tokens[first : first + num * size]
            where = int(differ.argmax())
            if differ[where]:
                return child, end + where // size
            node = child
            end += num
            if num < child.num_pages:
                break
        return node, end

    def _new_root(self, namespace: bytes | None) -> Node:
        root = Node(None, 0, np.empty(0, np.int32), np.empty((self.geometry.num_groups, 0), np.int32))
        if namespace is not None:
            self._namespaces[root] = namespace
        return root

    def _cut(self, node: Node, end: int) -> Node:
        """The node that ends after exactly `end` pages on the way to `node`; split off if there is none."""
        while node.parent is not None and node.start >= end:
            node = node.parent
        num = end - node.start
        if num == node.num_pages:
            return node
        size, parent = self.geometry.page_size, node.parent
        assert parent is not None
        upper = Node(parent, node.start, node.tokens[: num * size], node.pages[:, :num], node.priority)
        upper.hits, upper.locks = node.hits, node.locks
        parent.children[upper.tokens[:size].tobytes()] = upper
        node.parent, node.start = upper, end
        node.tokens, node.pages = node.tokens[num * size :], node.pages[:, num:]
        upper.children[node.tokens[:size].tobytes()] = node
        self._num_nodes += 1
        if not upper.locks:
            self.order.created(upper)
        return upper

    def _pages_to(self, node: Node, end: int) -> Int32:
        """Pages [G, end] of the prefix that ends in `node`."""
        parts = []
        step: Node | None = node
        while step is not None:
            parts.append(step.pages[:, : end - step.start])
            step = step.parent
        return np.concatenate(parts[::-1], axis=1)

    def _unlock(self, node: Node) -> None:
        step = node
        while step.parent is not None:
            step.locks -= 1
            if not step.locks:
                self._locked_pages -= step.num_pages
                self.order.unlocked(step)
            step = step.parent

    def _shorten(self, node: Node, num: int) -> Int32:
        """Drop the last `num` pages of a leaf, fewer than it has."""
        keep, size = node.num_pages - num, self.geometry.page_size
        self._note("removed", node, skip=keep)
        pages = node.pages[:, keep:]
        node.tokens, node.pages = node.tokens[: keep * size], node.pages[:, :keep]
        self._cached_pages -= num
        return pages

    def _remove(self, node: Node) -> Int32:
        """Take a leaf out, and its root if nothing else hangs there."""
        parent = node.parent
        assert parent is not None
        self._note("removed", node)
        del parent.children[node.tokens[: self.geometry.page_size].tobytes()]
        self.order.removed(node)
        self._num_nodes -= 1
        self._cached_pages -= node.num_pages
        if not parent.children:
            if parent.parent is None:
                del self._roots[self._namespaces.pop(parent)]
            elif not parent.locks:
                self.order.exposed(parent)
        return node.pages

    def _note(self, kind: Literal["stored", "removed"], node: Node, skip: int = 0) -> None:
        if self._events is None:
            return
        parts = []
        step: Node = node
        while step.parent is not None:
            parts.append(step.tokens)
            step = step.parent
        start = (node.start + skip) * self.geometry.page_size
        self._events.append(CacheEvent(kind, self._namespaces[step], start, np.concatenate(parts[::-1])))
