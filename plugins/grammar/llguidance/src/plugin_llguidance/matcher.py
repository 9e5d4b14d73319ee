"""The library's matcher behind core's.

The library never leaves a state of error that a refused token or an end of text puts it into, so tokens are tried
(`try_consume_tokens` changes nothing when it refuses) and ends of text are kept here.
"""

from __future__ import annotations

import threading
from typing import Any

from core.interfaces.grammar import CompiledGrammar, GrammarMatcher, TokenMask


class LlguidanceCompiled(CompiledGrammar):
    """A matcher at the beginning, to be copied: copies share the automaton that grows with use."""

    def __init__(self, beginning: Any, num_tokens: int, eos_token_ids: frozenset[int], size_bytes: int) -> None:
        self._beginning = beginning
        self._num_tokens = num_tokens
        self._eos_token_ids = eos_token_ids
        self._size_bytes = size_bytes
        self._lock = threading.Lock()  # the library lets one thread at a time use a matcher

    def matcher(self) -> GrammarMatcher:
        with self._lock:
            copy = self._beginning.deep_copy()
        return LlguidanceMatcher(copy, self._num_tokens, self._eos_token_ids)

    @property
    def num_bytes(self) -> int:
        return self._size_bytes


class LlguidanceMatcher(GrammarMatcher):
    """State of one text. `state`: the library's."""

    __slots__ = ("_ended", "_eos_token_ids", "_num_tokens", "state")

    def __init__(self, state: Any, num_tokens: int, eos_token_ids: frozenset[int]) -> None:
        self.state = state
        self._num_tokens = num_tokens
        self._eos_token_ids = eos_token_ids
        self._ended = False

    def fill_mask(self, mask: TokenMask) -> None:
        if self._ended:
            mask[:] = 0
            return
        self.state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self.state.is_error():
            mask[:] = 0  # a limit was hit: nothing may come next

    def accept(self, token_id: int) -> bool:
        if self._ended or not 0 <= token_id < self._num_tokens:
            return False  # an id outside of the vocabulary would put the library into its state of error
        if token_id in self._eos_token_ids:
            self._ended = self.state.is_accepting()
            return self._ended
        return self.state.try_consume_tokens([token_id]) == 1

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.state.rollback(num_tokens)

    @property
    def terminated(self) -> bool:
        return self._ended

    def forced_text(self) -> bytes:
        return b"" if self._ended else self.state.compute_ff_bytes()
