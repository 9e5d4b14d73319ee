"""Compiled grammars, kept up to a number of bytes; the one that was not asked for longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from core.interfaces.grammar import CompiledGrammar, GrammarBackend

Key = tuple[str, str]  # kind, text
ENTRY_BYTES = 1024  # of any entry, however small its grammar says it is


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar, and the backend that fills the masks of its matchers. num_bytes: memory it takes."""

    compiled: CompiledGrammar
    backend: GrammarBackend
    num_bytes: int = 0


class GrammarCache:
    """By kind and source text. limit_bytes: 0 keeps nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[Key, tuple[Grammar, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Grammar | None:
        """The grammar, which becomes the youngest; None if it is not there."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Key, grammar: Grammar) -> None:
        """Keep it, unless it is larger than all that may be kept."""
        size = grammar.num_bytes + len(key[1].encode()) + ENTRY_BYTES
        if (old := self._entries.pop(key, None)) is not None:
            self.num_bytes -= old[1]
        if size > self._limit_bytes:
            return
        self._entries[key] = (grammar, size)
        self.num_bytes += size
        while self.num_bytes > self._limit_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1][1]
