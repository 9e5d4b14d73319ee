"""Tokens to text, one at a time, never cutting a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6  # enough for any character of four bytes and a token of context


class TextStream(Protocol):
    """One text growing token by token. Not shared between threads."""

    def get_ready(self) -> None:
        """Do what can be done before the first token. It need not be called."""

    def step(self, token: int) -> str:
        """Text that this token completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is left when no token follows (an incomplete character shows as U+FFFD)."""


class LibraryStream:
    """The tokenizers library's incremental decoder, with what it lacks: an end, and going on after odd bytes."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool, context: Sequence[int] = ()) -> None:
        """tokenizer: a tokenizers.Tokenizer. context: tokens before the first (they decide about leading spaces)."""
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._make = DecodeStream
        self._context = list(context)[-CONTEXT_TOKENS:]
        self._stream: Any = None  # made with the first token, or before it by `get_ready`
        self._pending: list[int] = []

    def _start(self) -> Any:
        if self._context and self._decode(self._context).endswith(REPLACEMENT):
            self._context = []  # the prompt ends inside a character; start afresh
        return self._make(ids=self._context or None, skip_special_tokens=self._skip)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def get_ready(self) -> None:
        if self._stream is None:
            self._stream = self._start()

    def step(self, token: int) -> str:
        self.get_ready()
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:
            # Bytes that form no character can make earlier text decode differently; the library gives up then.
            text = self._tail([*self._pending, token])
            self._context, self._pending = [], []
            self._stream = self._start()
            return text
        if text is None:
            self._pending.append(token)
            return ""
        if self._pending:
            self._context += self._pending
            self._pending = []
        self._context.append(token)
        del self._context[:-CONTEXT_TOKENS]
        return text

    def flush(self) -> str:
        if not self._pending:
            return ""
        text = self._tail(self._pending)
        self._pending = []
        return text

    def _tail(self, ids: list[int]) -> str:
        """Text of `ids` after the tokens that were shown already."""
        before = self._decode(self._context) if self._context else ""
        whole = self._decode([*self._context, *ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)


class WindowStream:
    """For tokenizers that can only decode whole lists: decodes a short window twice and takes the difference."""

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context)[-CONTEXT_TOKENS:]
        self._shown = len(self._ids)  # tokens of the window whose text is out

    def get_ready(self) -> None:
        pass

    def step(self, token: int) -> str:
        self._ids.append(token)
        before = self._decode(self._ids[: self._shown])
        whole = self._decode(self._ids)
        if len(whole) <= len(before) or whole.endswith(REPLACEMENT):
            return ""
        self._trim()
        return whole[len(before) :]

    def flush(self) -> str:
        before = self._decode(self._ids[: self._shown])
        whole = self._decode(self._ids)
        self._trim()
        return whole[len(before) :]

    def _trim(self) -> None:
        del self._ids[:-CONTEXT_TOKENS]
        self._shown = len(self._ids)
