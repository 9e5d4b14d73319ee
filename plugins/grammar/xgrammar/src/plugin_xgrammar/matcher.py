"""The library's matcher behind core's. Its handle is called itself: the layer of Python above costs as much again."""

from __future__ import annotations

from typing import Any

import numpy as np
from xgrammar import GrammarMatcher as LibraryMatcher

from core.interfaces.grammar import CompiledGrammar, GrammarMatcher, TokenMask


class XgrammarCompiled(CompiledGrammar):
    """compiled: the library's, which is immutable."""

    def __init__(self, compiled: Any, eos_token_ids: tuple[int, ...], last_word: np.uint32) -> None:
        self._compiled = compiled
        self._eos_token_ids = list(eos_token_ids)
        self._last_word = last_word

    def matcher(self) -> GrammarMatcher:
        matcher = LibraryMatcher(self._compiled, override_stop_tokens=self._eos_token_ids)
        return XgrammarMatcher(matcher._handle, self._last_word)

    @property
    def num_bytes(self) -> int:
        return int(self._compiled.memory_size_bytes)


class XgrammarMatcher(GrammarMatcher):
    """State of one text. `state`: the library's. last_word: which bits of a mask's last word are of the vocabulary."""

    __slots__ = ("_last_word", "state")

    def __init__(self, state: Any, last_word: np.uint32) -> None:
        self.state = state
        self._last_word = last_word

    def fill_mask(self, mask: TokenMask) -> None:
        if self.state.is_terminated():
            mask[:] = 0
            return
        self.state.fill_next_token_bitmask(mask.view(np.int32).reshape(1, -1), 0, False)
        mask[-1] &= self._last_word

    def accept(self, token_id: int) -> bool:
        return not self.state.is_terminated() and bool(self.state.accept_token(token_id, False))

    def rollback(self, num_tokens: int) -> None:
        self.state.rollback(num_tokens)

    @property
    def terminated(self) -> bool:
        return bool(self.state.is_terminated())

    def forced_text(self) -> bytes:
        if self.terminated:
            return b""
        try:
            return self.state.find_jump_forward_string().encode()
        except UnicodeDecodeError:  # what is forced begins or ends within a character
            return b""
