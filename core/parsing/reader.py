"""Reading a text that comes in pieces as if it were whole: the ground under machines that are written as generators.

A machine is a generator that reads through a `Reader` with `yield from`, and stands still where it needs characters
that have not come. What it does then depends on the characters only, never on the pieces. Reading takes time in
proportion to the text, however it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A step of a machine: stands still at every `yield` until there is more text; its value is what it read."""

SPACE = " \t\r\n"
_NO_SPACE = re.compile(f"[^{SPACE}]")


class Markers:
    """Strings to look for in a text. The one that begins first is found, and of those that begin together the
    longest."""

    def __init__(self, *markers: str) -> None:
        """markers: non-empty strings; none may begin another."""
        if not all(markers) or any(a != b and b.startswith(a) for a in markers for b in markers):
            raise ValueError(f"markers {markers!r}: each must have a character, and none may begin another")
        self.all = tuple(dict.fromkeys(markers))
        self._any = re.compile("|".join(re.escape(marker) for marker in self.all)) if self.all else re.compile("(?!)")
        self._firsts = frozenset(marker[0] for marker in self.all)
        self._longest = max(map(len, self.all), default=0)

    def search(self, text: str, start: int) -> tuple[int, str] | None:
        """Where the first marker at or behind `start` stands, and which it is."""
        found = self._any.search(text, start)
        return (found.start(), found.group()) if found else None

    def undecided(self, text: str, start: int) -> int:
        """Where the end of `text` begins that more text may complete to a marker; `len(text)` if there is none."""
        for place in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[place] in self._firsts:
                rest = len(text) - place
                if any(len(m) > rest and m.startswith(text[place:]) for m in self.all):
                    return place
        return len(text)


class Reader:
    """The text, as far as it has come, and the place up to which it is read.

    record: what was read since it was last emptied, in pieces, while `recording`; machines give it back as it stood
    where a call turns out to be none. num_read: characters that were read in all.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self.ended = False
        self.recording = False
        self.record: list[str] = []
        self.num_read = 0

    def feed(self, piece: str) -> None:
        """More text has come."""
        self._text = self._text[self._at :] + piece
        self._at = 0

    def peek(self) -> Reading[str]:
        """The next character, which is not read; "" at the end of the text."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def literal(self, *choices: str, read: bool = True) -> Reading[str | None]:
        """Read one of `choices`, none of which begins another. None, and nothing read, if none stands here; neither is
        anything where `read` is false."""
        while True:
            for choice in choices:
                if self._text.startswith(choice, self._at):
                    return self._read(len(choice)) if read else choice
            rest = self._text[self._at : self._at + max(map(len, choices))]
            if self.ended or not any(choice.startswith(rest) for choice in choices):
                return None
            yield

    def run(self, pattern: re.Pattern[str], limit: int) -> Reading[str | None]:
        """Read characters while each matches `pattern`, which is of one character. None, and nothing read, if there is
        none, if there are more than `limit`, or if the text ends before a character that does not match."""
        end = self._at
        while True:
            while end < len(self._text) and end - self._at <= limit and pattern.match(self._text[end]):
                end += 1
            if end - self._at > limit:
                return None
            if end < len(self._text):
                return self._read(end - self._at) if end > self._at else None
            if self.ended:
                return None
            length = end - self._at
            yield
            end = self._at + length

    def space(self) -> Reading[str]:
        """Read white space; what it was."""
        pieces: list[str] = []
        while True:
            found = _NO_SPACE.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            pieces.append(self._read(end - self._at))
            if found or self.ended:
                return "".join(pieces)
            yield

    def until(self, markers: Markers, sink: Callable[[str], None]) -> Reading[str | None]:
        """Read the text before the first of `markers`, which goes to `sink` piece by piece, and the marker itself.
        None: the text ended without one."""
        while True:
            found = markers.search(self._text, self._at)
            edge = len(self._text) if self.ended else markers.undecided(self._text, self._at)
            if found is not None and found[0] <= edge:
                place, marker = found
                if place > self._at:
                    sink(self._read(place - self._at))
                return self._read(len(marker))
            if edge > self._at:
                sink(self._read(edge - self._at))
            if self.ended:
                return None
            yield

    def all(self, sink: Callable[[str], None]) -> Reading[None]:
        """Read all the text that comes, to its end."""
        while True:
            if self._at < len(self._text):
                sink(self._read(len(self._text) - self._at))
            if self.ended:
                return
            yield

    def skip(self, num_characters: int) -> str:
        """Read characters that are known to be there (from `peek`)."""
        return self._read(num_characters)

    def _read(self, num_characters: int) -> str:
        piece = self._text[self._at : self._at + num_characters]
        self._at += num_characters
        self.num_read += num_characters
        if piece and self.recording:
            self.record.append(piece)
        return piece


class Machine:
    """Drives a generator: `feed` lets it go on, `finish` tells it that the text is over."""

    def __init__(self, reader: Reader, reading: Reading[None]) -> None:
        self._reader = reader
        self._reading: Reading[None] | None = reading

    def feed(self, piece: str) -> None:
        """Take a piece of text."""
        self._reader.feed(piece)
        self._go_on()

    def finish(self) -> None:
        """The text is over."""
        self._reader.ended = True
        self._go_on()

    def _go_on(self) -> None:
        if self._reading is not None and next(self._reading, self) is self:
            self._reading = None
