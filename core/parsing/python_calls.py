"""Calls written as a Python list: `[get_weather(city="Paris", days=3), now()]`. Nothing is ever evaluated.

A scanner reads names, keyword arguments and literals (strings, numbers, True, False, None, lists, tuples, dicts) and
writes their JSON. true, false and null are taken too, as are JSON's escapes in strings. Everything else (positional
arguments, other expressions, prefixes of strings, a keyword that comes twice) is no call, and stays text.

A list of calls stands at the beginning of the answer or of a line, so that an index or a list in prose is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from core.interfaces.parsers import ParsedDelta, ParserStream
from core.parsing.call_output import CallOutput, json_string
from core.parsing.reader import Machine, Markers, Reader, Reading

Sink = Callable[[str], None]
_MAX_DEPTH = 40  # lists and dicts inside each other
_NAME = re.compile(r"[\w.\-]")
_KEY = re.compile(r"\w")
_NUMBER_PART = re.compile(r"[0-9eE.+\-_]")
_NUMBER = re.compile(r"[+-]?(?:(0|[1-9]\d*)(\.\d*)?|(\.\d+))([eE][+-]?\d+)?")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\\": "\\", "'": "'", '"': '"',
    "\n": "", "/": "/",
}  # fmt: skip
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile("[0-9a-fA-F]")
_OCTAL = re.compile("[0-7]")


@dataclass(frozen=True, slots=True)
class PythonFormat:
    """One format. opening, closing: markers that may stand around a list and are dropped with it ("" for none); behind
    an opening marker, a list may stand anywhere."""

    opening: str = ""
    closing: str = ""


def python_value(text: str) -> str | None:
    """The JSON of a Python literal, or None if `text` is none."""
    reader = Reader()
    pieces: list[str] = []
    outcome: list[bool] = []

    def reading() -> Reading[None]:
        yield from reader.space()
        read = yield from _value(reader, pieces.append, 0)
        yield from reader.space()
        outcome.append(read and not (yield from reader.peek()))

    machine = Machine(reader, reading())
    machine.feed(text)
    machine.finish()
    return "".join(pieces) if outcome == [True] else None


class PythonCallStream(ParserStream):
    """State of one text. The whole list is held back (see core.parsing.call_output): that one call is well formed does
    not say that the list is one of calls."""

    def __init__(self, form: PythonFormat, hold: int) -> None:
        self._form = form
        self._reader = Reader()
        self._output = CallOutput(self._reader, hold)
        self._machine = Machine(self._reader, self._read())

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        self._machine.feed(delta)
        return self._output.take()

    def finish(self) -> ParsedDelta:
        """See the interface."""
        self._machine.finish()
        self._output.finish()
        return self._output.take()

    def _read(self) -> Reading[None]:
        reader, output, form = self._reader, self._output, self._form
        openings = (form.opening,) if form.opening else ()
        at_line = True
        markers = Markers("\n", "[", *openings)
        while True:
            if at_line:
                output.text((yield from reader.space()))

            def plain(piece: str) -> None:
                nonlocal at_line
                at_line = False
                output.text(piece)

            found = yield from reader.until(markers, plain)
            if found is None:
                return
            if found == "\n":
                output.text(found)
                at_line = True
                continue
            if found == "[" and not at_line:
                output.text(found)
                continue
            output.begin(found)
            called = False
            if found == form.opening:
                yield from reader.space()
                called = (yield from reader.literal("[")) is not None and (yield from self._calls())
            else:
                called = yield from self._calls()
            if not called:
                _, line_break, line = "".join(reader.record).rpartition("\n")
                at_line = bool(line_break) and not line.strip()
                if output.break_off():
                    yield from reader.all(output.text)
                    return
                continue
            at_line = bool(form.closing) and (yield from self._closing())

    def _closing(self) -> Reading[bool]:
        """The closing marker behind a list, if it is there, is dropped. Whether a line has ended."""
        space = yield from self._reader.space()
        if (yield from self._reader.literal(self._form.closing)) is not None:
            return False
        self._output.text(space)
        return "\n" in space

    def _calls(self) -> Reading[bool]:
        """The calls of a list, behind "["; whether it is one."""
        reader, output = self._reader, self._output
        while True:
            yield from reader.space()
            if not (yield from self._call()):
                return False
            yield from reader.space()
            found = yield from reader.literal(",", "]")
            if found == "]":
                output.complete()
                return True
            if found is None:
                return False

    def _call(self) -> Reading[bool]:
        reader, output = self._reader, self._output
        name = yield from reader.run(_NAME, 256)
        if name is None or not (name[0].isalpha() or name[0] == "_"):
            return False
        yield from reader.space()
        if (yield from reader.literal("(")) is None:
            return False
        output.name(name)
        output.write("{")
        output.check()
        keys: set[str] = set()
        while True:
            yield from reader.space()
            if (yield from reader.literal(")")) is not None:
                output.write("}")
                return True
            key = yield from reader.run(_KEY, 256)
            if key is None or key[0].isdigit() or key in keys:
                return False
            yield from reader.space()
            if (yield from reader.literal("=")) is None:
                return False
            yield from reader.space()
            output.write((", " if keys else "") + json.dumps(key, ensure_ascii=False) + ": ")
            keys.add(key)

            def give(piece: str) -> None:
                output.write(piece)
                output.check()

            if not (yield from _value(reader, give, 0)):
                return False
            yield from reader.space()
            following = yield from reader.peek()
            if following == ",":
                reader.skip(1)
            elif following != ")":
                return False


def _value(reader: Reader, sink: Sink, depth: int) -> Reading[bool]:
    """A literal, whose JSON goes to `sink` piece by piece; whether it is one."""
    first = yield from reader.peek()
    if first in ('"', "'") and first:
        return (yield from _string(reader, sink))
    if first in ("[", "(", "{") and first:
        if depth >= _MAX_DEPTH:
            return False
        reader.skip(1)
        if first == "{":
            return (yield from _dict(reader, sink, depth + 1))
        return (yield from _list(reader, sink, "]" if first == "[" else ")", depth + 1))
    if first.isalpha():
        word = yield from _word(reader, _KEY, 8)
        if word not in _WORDS:
            return False
        sink(_WORDS[word])
        return True
    number = _number((yield from _word(reader, _NUMBER_PART, 1024)) or "")
    if number is None:
        return False
    sink(number)
    return True


def _word(reader: Reader, pattern: re.Pattern[str], limit: int) -> Reading[str]:
    """Characters that match `pattern`; at the end of the text too."""
    word = ""
    while len(word) < limit:
        character = yield from reader.peek()
        if not character or not pattern.match(character):
            break
        word += reader.skip(1)
    return word


def _number(text: str) -> str | None:
    """JSON of a number in Python's spelling, or None."""
    if re.search(r"(?<!\d)_|_(?!\d)", text):
        return None
    found = _NUMBER.fullmatch(text.replace("_", ""))
    if found is None:
        return None
    whole, fraction, bare, exponent = found.groups()
    digits = (whole or "0") + ((fraction if len(fraction) > 1 else ".0") if fraction else bare or "")
    return ("-" if text[0] == "-" else "") + digits + (exponent or "")


def _list(reader: Reader, sink: Sink, closing: str, depth: int) -> Reading[bool]:
    """Behind the opening bracket. `(x)` is x in Python; here it is a list, since tuples become lists."""
    sink("[")
    first = True
    while True:
        yield from reader.space()
        if (yield from reader.literal(closing)) is not None:
            sink("]")
            return True
        if not first:
            sink(", ")
        first = False
        if not (yield from _value(reader, sink, depth)):
            return False
        if not (yield from _next_item(reader, closing)):
            return False


def _dict(reader: Reader, sink: Sink, depth: int) -> Reading[bool]:
    """Behind the opening brace. Keys are strings."""
    sink("{")
    first = True
    while True:
        yield from reader.space()
        if (yield from reader.literal("}")) is not None:
            sink("}")
            return True
        if not first:
            sink(", ")
        first = False
        if (yield from reader.peek()) not in ('"', "'") or not (yield from _string(reader, sink)):
            return False
        yield from reader.space()
        if (yield from reader.literal(":")) is None:
            return False
        sink(": ")
        yield from reader.space()
        if not (yield from _value(reader, sink, depth)):
            return False
        if not (yield from _next_item(reader, "}")):
            return False


def _next_item(reader: Reader, closing: str) -> Reading[bool]:
    """The comma behind an item, or the closing bracket, which is left for the caller."""
    yield from reader.space()
    following = yield from reader.peek()
    if following == ",":
        reader.skip(1)
    return following in (",", closing) and bool(following)


def _string(reader: Reader, sink: Sink) -> Reading[bool]:
    quote = yield from reader.literal("'", '"')
    if quote is None:
        return False
    if (yield from reader.peek()) == quote:  # an empty string, or the opening of a long one
        reader.skip(1)
        if (yield from reader.peek()) != quote:
            sink('""')
            return True
        reader.skip(1)
        quote *= 3
    markers = Markers(quote, "\\")
    sink('"')
    while True:
        found = yield from reader.until(markers, lambda piece: sink(json_string(piece)))
        if found is None:
            return False
        if found == quote:
            sink('"')
            return True
        character = yield from _escape(reader)
        if character is None:
            return False
        sink(json_string(character))


def _escape(reader: Reader) -> Reading[str | None]:
    """What an escape means, behind its backslash. One that Python does not know is the characters themselves."""
    character = yield from reader.peek()
    if not character:
        return None
    if _OCTAL.match(character):
        return chr(int((yield from _word(reader, _OCTAL, 3)), 8))
    reader.skip(1)
    if character in _HEX_DIGITS:
        code = yield from _code(reader, _HEX_DIGITS[character])
        if code is None:
            return None
        if 0xD800 <= code < 0xDC00:  # the first half of a character as JSON writes it
            if (yield from reader.literal("\\u")) is None:
                return None
            low = yield from _code(reader, 4)
            if low is None or not 0xDC00 <= low < 0xE000:
                return None
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return chr(code) if code < 0x110000 and not 0xDC00 <= code < 0xE000 else None
    return _ESCAPES.get(character, "\\" + character)


def _code(reader: Reader, num_digits: int) -> Reading[int | None]:
    digits = yield from _word(reader, _HEX, num_digits)
    return int(digits, 16) if len(digits) == num_digits else None
