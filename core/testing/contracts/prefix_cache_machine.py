"""The state machine of the prefix cache suite: every call against a dictionary from prefixes to their pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.interfaces.prefix_cache import CacheKey, CacheLock, Int32, MatchParams, MatchResult

if TYPE_CHECKING:
    from core.testing.contracts.prefix_cache import PrefixCacheContract

Prefix = tuple[bytes, tuple[int, ...]]  # namespace, tokens of whole pages
_SPACES = st.sampled_from([b"", b"n", b"nn"])


def key_of(namespace: bytes, tokens: Sequence[int]) -> CacheKey:
    return CacheKey(namespace, np.array(tokens, np.int32))


def cache_machine(contract: PrefixCacheContract, policies: Sequence[str]) -> type[RuleBasedStateMachine]:
    """The machine for the cache under test."""

    class CacheMachine(RuleBasedStateMachine):
        """model: prefix -> its pages, one a group. locks: (lock, prefixes it holds). held: what events tell."""

        @initialize(
            page_size=st.sampled_from(contract.page_sizes),
            num_groups=st.sampled_from(contract.group_counts),
            policy=st.sampled_from(list(policies)),
        )
        def start(self, page_size: int, num_groups: int, policy: str) -> None:
            self.size, self.groups = page_size, num_groups
            self.cache = contract.cache(page_size, num_groups, policy)
            self.model: dict[Prefix, tuple[int, ...]] = {}
            self.locks: list[tuple[CacheLock, set[Prefix]]] = []
            self.held: set[Prefix] | None = None
            self.next_page = 1

        # What is known

        def prefixes(self, namespace: bytes, tokens: Sequence[int]) -> list[Prefix]:
            """Of whole pages, shortest first."""
            return [(namespace, tuple(tokens[:end])) for end in range(self.size, len(tokens) + 1, self.size)]

        def known(self, namespace: bytes, tokens: Sequence[int]) -> list[Prefix]:
            """The longest run of them that is cached."""
            found = []
            for prefix in self.prefixes(namespace, tokens):
                if prefix not in self.model:
                    break
                found.append(prefix)
            return found

        def locked(self) -> set[Prefix]:
            return {prefix for _, prefixes in self.locks for prefix in prefixes}

        def fresh(self, count: int) -> Int32:
            """Pages that nobody has had yet, [groups, count]."""
            pages = np.arange(self.next_page, self.next_page + count * self.groups, dtype=np.int32)
            self.next_page += pages.size
            return pages.reshape(self.groups, count)

        def forget(self, pages: Int32) -> None:
            """Drop from the model what the cache has given back."""
            assert pages.ndim == 2, f"pages given back have shape {pages.shape}, not [groups, n]"
            assert pages.shape[0] == self.groups, f"pages given back have shape {pages.shape}"
            columns = [tuple(column) for column in pages.T.tolist()]
            assert len(set(columns)) == len(columns), "a page was given back twice"
            owner = {page: prefix for prefix, page in self.model.items()}
            for column in columns:
                assert column in owner, f"pages {column} were given back, and the cache did not have them"
                del self.model[owner[column]]

        # Calls

        def offer(self, namespace: bytes, tokens: list[int], pages: Int32, priority: int) -> Any:
            """insert, and what it says it took into the model. The arrays are the caller's and change afterwards."""
            key, offered = key_of(namespace, tokens), pages.copy()
            result = self.cache.insert(key, offered, priority)
            key.tokens[:], offered[:] = -1, -1
            total = len(tokens) // self.size
            assert result.matched_tokens % self.size == 0
            now, first = result.matched_tokens // self.size, result.first_new_page
            assert 0 <= now <= total, f"insert of {total} pages says that {now} are cached"
            prefixes = self.prefixes(namespace, tokens)
            before = len(self.known(namespace, tokens))
            if now:
                assert now >= before, f"insert forgot pages: {before} were cached, now {now}"
                assert first == before, f"{before} pages were there, yet first_new_page is {first}"
            for i in range(first, now):
                self.model[prefixes[i]] = tuple(pages[:, i].tolist())
            return result

        def look(self, namespace: bytes, tokens: list[int], limit: int, touch: bool = True) -> MatchResult:
            """match, compared with the model."""
            found = self.cache.match(MatchParams(key_of(namespace, tokens), limit, touch))
            known = self.known(namespace, tokens[: max(limit, 0)])
            assert found.num_tokens <= max(limit, 0), f"matched {found.num_tokens} tokens, at most {limit} were asked"
            wanted = len(known) * self.size
            assert found.num_tokens == wanted, f"matched {found.num_tokens} tokens, {wanted} of them are cached"
            assert found.pages.shape == (self.groups, len(known))
            assert found.pages.dtype == np.int32
            assert [tuple(column) for column in found.pages.T.tolist()] == [self.model[p] for p in known]
            return found

        def tokens(self, data: st.DataObject) -> list[int]:
            """Few different texts, so that prefixes meet; not always whole pages."""
            pages = data.draw(st.lists(st.integers(0, 1), max_size=6), label="pages")
            rest = data.draw(st.integers(0, self.size - 1), label="rest")
            return [token for page in pages for token in [page] * self.size] + [0] * rest

        @rule(data=st.data(), namespace=_SPACES, priority=st.integers(-1, 1))
        def insert(self, data: st.DataObject, namespace: bytes, priority: int) -> None:
            tokens = self.tokens(data)
            self.offer(namespace, tokens, self.fresh(len(tokens) // self.size), priority)

        @rule(data=st.data(), namespace=_SPACES, touch=st.booleans())
        def match(self, data: st.DataObject, namespace: bytes, touch: bool) -> None:
            tokens = self.tokens(data)
            self.look(namespace, tokens, data.draw(st.integers(0, len(tokens) + 1), label="limit"), touch)

        @rule(data=st.data(), namespace=_SPACES)
        def lock(self, data: st.DataObject, namespace: bytes) -> None:
            tokens = self.tokens(data)
            limit = data.draw(st.integers(0, len(tokens) + 1), label="limit")
            found = self.look(namespace, tokens, limit)
            self.locks.append((self.cache.lock(found.node), set(self.known(namespace, tokens[:limit]))))

        @precondition(lambda self: bool(getattr(self, "locks", None)))
        @rule(data=st.data())
        def lock_again(self, data: st.DataObject) -> None:
            """A second request holds what another one does."""
            _, held = self.locks[data.draw(st.integers(0, len(self.locks) - 1))]
            namespace, tokens = max(held, key=lambda prefix: len(prefix[1]), default=(b"", ()))
            found = self.look(namespace, list(tokens), len(tokens))
            self.locks.append((self.cache.lock(found.node), set(held)))

        @rule(data=st.data(), namespace=_SPACES)
        def request(self, data: st.DataObject, namespace: bytes) -> None:
            """What core does: match and lock, compute the rest, insert everything, lock that instead."""
            tokens = self.tokens(data)
            found = self.look(namespace, tokens, max(0, len(tokens) - 1))
            lock = self.cache.lock(found.node)
            rest = len(tokens) // self.size - found.pages.shape[1]
            pages = np.concatenate((found.pages, self.fresh(rest)), axis=1)
            result = self.offer(namespace, tokens, pages, 0)
            if result.matched_tokens:
                held = self.prefixes(namespace, tokens[: result.matched_tokens])
                self.locks.append((self.cache.lock(result.node), set(held)))
            lock.release()

        @precondition(lambda self: bool(getattr(self, "locks", None)))
        @rule(data=st.data())
        def unlock(self, data: st.DataObject) -> None:
            lock, _ = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
            lock.release()
            lock.release()

        @rule(num=st.integers(0, 12))
        def evict(self, num: int) -> None:
            locked = self.locked()
            could = len(self.model) - len(locked)
            pages = self.cache.evict(num)
            before = dict(self.model)
            self.forget(pages)
            gone = set(before) - set(self.model)
            assert not gone & locked, f"evicted though locked: {gone & locked}"
            assert len(gone) >= min(num, could), f"asked for {num} of {could} unlocked pages, got {len(gone)}"
            for namespace, tokens in self.model:
                assert len(tokens) == self.size or (namespace, tokens[: -self.size]) in self.model, (
                    "a page stayed whose prefix went: nothing can match it"
                )

        @precondition(lambda self: hasattr(self, "cache") and not self.locks)
        @rule()
        def reset(self) -> None:
            self.forget(self.cache.reset())
            assert not self.model, f"reset kept {len(self.model)} pages"

        @invariant()
        def counts(self) -> None:
            if not hasattr(self, "cache"):
                return
            stats, num_locked = self.cache.stats(), len(self.locked())
            assert stats.cached_pages == len(self.model), f"{len(self.model)} pages are held, stats say {stats}"
            assert stats.evictable_pages == len(self.model) - num_locked, f"{num_locked} are locked, stats say {stats}"
            pages = [page for pages in zip(*self.model.values(), strict=True) for page in pages]
            assert len(set(pages)) == len(pages)

        @invariant()
        def told(self) -> None:
            if not hasattr(self, "cache"):
                return
            events = self.cache.events()
            if events and self.held is None:
                self.held = set()
            if self.held is not None:
                for event in events:
                    contract.apply_event(event, self.held, self.size)
                assert self.held == set(self.model), "the events do not add up to what is cached"

        def teardown(self) -> None:
            for lock, _ in getattr(self, "locks", []):
                lock.release()
            if hasattr(self, "cache"):
                self.locks.clear()
                self.counts()
                self.reset()
                self.counts()

    return CacheMachine
