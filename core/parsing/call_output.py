"""What comes out of a tool-call machine: content, and calls that are held back until it is clear that they are calls.

The rule for all machines: a call is held back until it is complete, or until more than `hold` characters of it were
read and all of them were well formed; from then on its arguments are given out as they are read. What turns out to be
no call comes back as text, exactly as it stood. A call that breaks after a part was given out keeps that part (its
arguments are no valid JSON then, so nobody runs half a call), and all that follows is text.

White space beside calls belongs to the format: before a call, between calls, and after the last one if nothing else
follows.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from core.interfaces.parsers import ParsedDelta, ToolCallDelta
from core.parsing.reader import SPACE, Reader


def json_string(text: str) -> str:
    """`text` as a JSON string, without its quotes; of two texts, one behind the other, it is theirs."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class _Piece(NamedTuple):
    number: int
    name: str | None
    arguments: str


class CallOutput:
    """State of one text. A machine says what it reads: `text`; or `begin`, then `name` and `write` for each call, with
    `check` wherever all that was read is well formed, and at last `complete` or `break_off`."""

    def __init__(self, reader: Reader, hold: int) -> None:
        self._reader = reader
        self._hold = hold
        self._content: list[str] = []
        self._space: list[str] = []  # at the end of the content so far; only counts if more content follows
        self._given: list[_Piece] = []
        self._held: list[_Piece] = []
        self._start = 0  # number of characters read before the call
        self._since = 0  # pieces of the record that `_held` accounts for
        self._index = -1  # of the last call, held ones included
        self._out = False  # whether what is read now has been given out in part
        self.num_calls = 0

    def take(self) -> ParsedDelta:
        """What has come out since the last time."""
        delta = ParsedDelta(content="".join(self._content))
        pieces: list[str] = []
        for piece in self._given:
            if delta.tool_calls and delta.tool_calls[-1].index == piece.number:
                pieces.append(piece.arguments)
                continue
            if delta.tool_calls:
                delta.tool_calls[-1].arguments = "".join(pieces)
            delta.tool_calls.append(ToolCallDelta(piece.number, piece.name))
            pieces = [piece.arguments]
        if delta.tool_calls:
            delta.tool_calls[-1].arguments = "".join(pieces)
        self._content, self._given = [], []
        return delta

    def text(self, text: str) -> None:
        """Content. White space at its end is held back until it is clear what follows."""
        body = text.rstrip(SPACE)
        if body:
            self._content += [*self._space, body]
            self._space = []
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def drop_space(self) -> None:
        """White space at the end of the content so far belonged to the format."""
        self._space = []

    def finish(self) -> None:
        """The text is over. White space at the end is content if there was no call."""
        if not self.num_calls:
            self._content += self._space
        self._space = []

    def begin(self, opening: str) -> None:
        """What may be a call begins with `opening`, which was read. From here on the reader's record is kept."""
        self._reader.recording = True
        self._reader.record = [opening]
        self._start = self._reader.num_read - len(opening)
        self._since = 0

    def name(self, name: str) -> None:
        """The name of a call was read."""
        self._index += 1
        self._put(_Piece(self._index, name, ""))

    def write(self, arguments: str) -> None:
        """The JSON of what was read, behind what was written before."""
        self._put(_Piece(self._index, None, arguments))

    def check(self) -> None:
        """What was read so far is well formed: give it out if enough of it has come."""
        if not self._out and self._reader.num_read - self._start > self._hold:
            self._give()
            self._out = True

    def complete(self) -> None:
        """What was begun is a call, or calls, to its end."""
        self._give()
        self._end()

    def break_off(self) -> bool:
        """What was begun is no call: what was not given out of it is text. Whether something was given out."""
        out = self._out
        raw = self._reader.record if not out else self._reader.record[self._since :]
        self._held = []
        self._index = self.num_calls - 1
        self._end()
        if out:
            self._content += raw
        else:
            self.text("".join(raw))
        return out

    def _put(self, piece: _Piece) -> None:
        if self._out:
            self._given.append(piece)
            self.num_calls = self._index + 1
            self._reader.record = []
            self._since = 0
        else:
            self._held.append(piece)
            self._since = len(self._reader.record)

    def _give(self) -> None:
        self._given += self._held
        self._held = []
        self._space = []
        self.num_calls = self._index + 1

    def _end(self) -> None:
        self._out = False
        self._reader.recording = False
        self._reader.record = []
