"""Where a JSON value ends, character by character, and whether what came so far can still become one.

No recursion and no look-back: a value of any size in any pieces takes time linear in its characters.
"""

from __future__ import annotations

import re
from typing import Final

WHITE_SPACE: Final = " \t\r\n"
MAX_DEPTH: Final = 128

_SPACE = re.compile(r"[ \t\r\n]*")
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(r"[0-9]*")

# What may come next. Inside numbers, the state says what the number has so far.
_VALUE, _VALUE_OR_END, _KEY_OR_END, _KEY, _COLON, _AFTER = range(6)
_STRING, _ESCAPE, _HEX, _WORD = range(6, 10)
_MINUS, _ZERO, _INTEGER, _POINT, _FRACTION, _E, _E_SIGN, _EXPONENT = range(10, 18)
_COMPLETE, _FAILED = range(18, 20)

_WORDS = {"t": "true", "f": "false", "n": "null"}
_NUMBER_STARTS = {"-": _MINUS, "0": _ZERO, **dict.fromkeys("123456789", _INTEGER)}
_NUMBER_STEPS: dict[int, dict[str, int]] = {
    _MINUS: {"0": _ZERO, **dict.fromkeys("123456789", _INTEGER)},
    _ZERO: {".": _POINT, "e": _E, "E": _E},
    _INTEGER: {".": _POINT, "e": _E, "E": _E, **dict.fromkeys("0123456789", _INTEGER)},
    _POINT: dict.fromkeys("0123456789", _FRACTION),
    _FRACTION: {"e": _E, "E": _E, **dict.fromkeys("0123456789", _FRACTION)},
    _E: {"+": _E_SIGN, "-": _E_SIGN, **dict.fromkeys("0123456789", _EXPONENT)},
    _E_SIGN: dict.fromkeys("0123456789", _EXPONENT),
    _EXPONENT: dict.fromkeys("0123456789", _EXPONENT),
}
_NUMBER_ENDS = frozenset((_ZERO, _INTEGER, _FRACTION, _EXPONENT))


def skip_space(text: str, start: int) -> int:
    """Index of the first character at or after `start` that is no JSON white space."""
    return _SPACE.match(text, start).end()  # type: ignore[union-attr]  # matches everywhere


class JsonScanner:
    """One JSON value that comes in pieces.

    `feed` takes characters as long as they belong to the value or stand before it as white space. The value is
    `complete` at its last character; a number, whose end cannot be seen, is complete at the first character that does
    not belong to it, or where the text ends (`may_end`). `failed` at the first character that no JSON value can have
    there. Nesting deeper than `max_depth` fails. Which character decides never depends on the pieces.

    Repeated keys and lone surrogates are let pass, as Python's `json` does.
    """

    __slots__ = ("_max_depth", "_rest", "_stack", "_state")

    def __init__(self, max_depth: int = MAX_DEPTH) -> None:
        self._max_depth = max_depth
        self._state = _VALUE
        self._stack: list[str] = []  # closing brackets that are still to come; a string that is a key adds ":"
        self._rest = ""  # of a word; of an escape: as many characters as hex digits are still to come

    @property
    def complete(self) -> bool:
        """The value is over."""
        return self._state == _COMPLETE

    @property
    def failed(self) -> bool:
        """What came is not the beginning of any JSON value."""
        return self._state == _FAILED

    @property
    def may_end(self) -> bool:
        """Whether the characters so far are a whole value."""
        return self._state == _COMPLETE or (not self._stack and self._state in _NUMBER_ENDS)

    def feed(self, text: str, start: int = 0) -> int:
        """Take characters of `text` from index `start`. Returns the index behind the last one that was taken; it is
        smaller than len(text) only if the value is complete or has failed."""
        at, length = start, len(text)
        while at < length and self._state < _COMPLETE:
            state = self._state
            if state == _STRING:
                at = _IN_STRING.match(text, at).end()  # type: ignore[union-attr]
                if at < length:
                    at += self._leave_string(text[at])
            elif state <= _AFTER:
                at = skip_space(text, at)
                if at < length:
                    at += self._structure(state, text[at])
            elif state >= _MINUS:
                if state in (_INTEGER, _FRACTION, _EXPONENT):
                    at = _DIGITS.match(text, at).end()  # type: ignore[union-attr]
                if at < length:
                    at += self._number(text[at])
            else:
                at += self._inside(state, text[at])
        return at

    # Each step looks at one character and returns how many it took: 1, or 0 if the value ended before it or failed.

    def _structure(self, state: int, character: str) -> int:
        if state == _AFTER:
            return self._after(character)
        if state == _COLON:
            return self._go(_VALUE) if character == ":" else self._fail()
        if character == '"':
            if state in (_KEY, _KEY_OR_END):
                self._stack.append(":")
            return self._go(_STRING)
        if state in (_VALUE_OR_END, _KEY_OR_END) and character == self._stack[-1]:
            self._stack.pop()
            return self._end_value()
        if state in (_KEY, _KEY_OR_END):
            return self._fail()
        return self._begin_value(character)

    def _begin_value(self, character: str) -> int:
        if character in "{[":
            if len(self._stack) >= self._max_depth:
                return self._fail()
            self._stack.append("}" if character == "{" else "]")
            return self._go(_KEY_OR_END if character == "{" else _VALUE_OR_END)
        if character in _WORDS:
            self._rest = _WORDS[character][1:]
            return self._go(_WORD)
        state = _NUMBER_STARTS.get(character)
        return self._fail() if state is None else self._go(state)

    def _after(self, character: str) -> int:
        if character == ",":
            return self._go(_KEY if self._stack[-1] == "}" else _VALUE)
        if character == self._stack[-1]:
            self._stack.pop()
            return self._end_value()
        return self._fail()

    def _leave_string(self, character: str) -> int:
        if character == "\\":
            return self._go(_ESCAPE)
        if character != '"':
            return self._fail()  # a control character
        if self._stack and self._stack[-1] == ":":
            self._stack.pop()
            return self._go(_COLON)
        return self._end_value()

    def _inside(self, state: int, character: str) -> int:
        """Inside an escape or a word."""
        if state == _WORD:
            if character != self._rest[0]:
                return self._fail()
            self._rest = self._rest[1:]
            return 1 if self._rest else self._end_value()
        if state == _HEX:
            if character not in "0123456789abcdefABCDEF":
                return self._fail()
            self._rest = self._rest[1:]
            return 1 if self._rest else self._go(_STRING)
        if character == "u":
            self._rest = "0000"
            return self._go(_HEX)
        return self._go(_STRING) if character in '"\\/bfnrt' else self._fail()

    def _number(self, character: str) -> int:
        following = _NUMBER_STEPS[self._state].get(character)
        if following is not None:
            return self._go(following)
        if self._state in _NUMBER_ENDS:
            self._end_value()
            return 0
        return self._fail()

    def _go(self, state: int) -> int:
        self._state = state
        return 1

    def _end_value(self) -> int:
        self._state = _AFTER if self._stack else _COMPLETE
        return 1

    def _fail(self) -> int:
        self._state = _FAILED
        return 0
