"""The stream machine of tool calls with JSON bodies: which text is content and which is a call."""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.interfaces.parsers import ParsedDelta, ParserStream, ToolCallDelta
from core.parsing.json_calls import JsonCalls, Layout, Literal, Part
from core.parsing.json_match import CallMatch
from core.parsing.json_text import WHITE_SPACE

# What is held back and turns out to be no call is searched again for openers inside it. These bound the sum of that
# work to a multiple of the text, however often an opener is repeated inside of one that does not close.
_AGAIN_FACTOR, _AGAIN_FREE = 8, 65_536


@dataclass(frozen=True, slots=True)
class _Way:
    """One way in which a text may go on. is_call: a call of `layout`, else a closer. closers_left: those of `layout`
    that may follow."""

    parts: tuple[Part, ...]
    layout: Layout
    is_call: bool
    closers_left: tuple[str, ...]


class _Attempt:
    """Ways tried one after the other on the same text.

    skip: characters of the opener, which no way reads. committed: a part of its call has been given out.
    """

    __slots__ = ("_others", "committed", "index", "match", "skip", "way")

    def __init__(self, ways: tuple[_Way, ...], skip: int) -> None:
        self.way, self._others = ways[0], ways[1:]
        self.match = CallMatch(self.way.parts)
        self.skip = skip
        self.committed = False
        self.index = -1

    def next_way(self) -> bool:
        """Turn to the next way, if there is one."""
        if not self._others:
            return False
        self.way, self._others = self._others[0], self._others[1:]
        self.match = CallMatch(self.way.parts)
        return True


class CallStream(ParserStream):
    """State of one text.

    Outside of calls, `_held` is what may be the beginning of an opener; inside an attempt, what was read of it in
    earlier pieces and nobody has got yet. Text is kept there in pieces and joined only when an attempt fails.
    """

    def __init__(self, calls: JsonCalls, hold: int) -> None:
        """hold: characters of arguments that a call is held back for."""
        self._hold = hold
        self._ways: dict[str, tuple[_Way, ...]] = {}
        starts: list[_Way] = []
        for layout in calls.layouts:
            way = _Way((*layout.before, *layout.call), layout, True, layout.closes)
            for opener in layout.opens:
                self._ways[opener] = (*self._ways.get(opener, ()), way)
            if layout.at_start:
                starts.append(way)
        self._openers = re.compile("|".join(map(re.escape, self._ways)) or r"(?!)")
        self._attempt = _Attempt(tuple(starts), 0) if starts else None
        self._held: list[str] = []
        self._shown: list[str] = []  # content of this piece of text
        self._space: list[str] = []  # white space at the end of the content: given out only if content follows
        self._after_call = False  # nothing but white space has come since the last call
        self._num_calls = 0
        self._num_fed = 0  # characters
        self._again = 0  # characters that were read again

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        out = ParsedDelta()
        self._num_fed += len(delta)
        if self._attempt is None and self._held:
            delta = self._take_held() + delta
        self._run(delta, 0, 0, out)
        out.content = self._take_shown()
        return out

    def finish(self) -> ParsedDelta:
        """A call that is whole but for its end marker counts; what else is held back is content."""
        out = ParsedDelta()
        while self._attempt is not None:
            attempt = self._attempt
            if attempt.way.is_call and attempt.match.whole:
                self._held.clear()
                self._complete(attempt, out)
                self._attempt = None
            else:
                text = self._take_held()
                self._run(text, *self._fail(attempt, text, 0, len(text)), out)
        self._content(self._take_held())
        if not self._after_call:
            self._shown += self._space
        self._space.clear()
        out.content = self._take_shown()
        return out

    def _run(self, text: str, start: int, at: int, out: ParsedDelta) -> None:
        """Read `text` from index `at` to its end. start: index of the first character that nobody has got, `at` except
        inside an attempt."""
        while at < len(text):
            if self._attempt is None:
                start, at = self._outside(text, at)
                continue
            attempt = self._attempt
            match = attempt.match
            at = match.feed(text, at)
            if attempt.way.is_call:
                self._give_early(attempt, out)
            if attempt.committed:
                if not match.found.arguments_end:
                    start = at
                elif match.found.end_at >= 0:
                    start = match.found.end_at
            if match.failed:
                if self._held:
                    earlier = self._take_held()
                    text, start, at = earlier + text, 0, len(earlier) + at
                start, at = self._fail(attempt, text, start, at)
            elif match.complete:
                self._held.clear()
                self._complete(attempt, out)
                start = at
        if self._attempt is not None and start < len(text):
            self._held.append(text[start:])

    def _outside(self, text: str, at: int) -> tuple[int, int]:
        """Content up to the next opener, or to the end. Returns the next (start, at)."""
        found = self._openers.search(text, at)
        if found is not None:
            self._content(text[at : found.start()])
            self._attempt = _Attempt(self._ways[found[0]], len(found[0]))
            return found.span()
        end = len(text) - self._undecided(text, at)
        self._content(text[at:end])
        if end < len(text):
            self._held.append(text[end:])
        return len(text), len(text)

    def _undecided(self, text: str, start: int) -> int:
        """Length of the longest end of `text`, from `start` on, that begins an opener."""
        longest = max(map(len, self._ways), default=0) - 1
        for at in range(max(start, len(text) - longest), len(text)):
            if any(opener.startswith(text[at:]) for opener in self._ways):
                return len(text) - at
        return 0

    def _give_early(self, attempt: _Attempt, out: ParsedDelta) -> None:
        """Arguments that go out before the call is complete."""
        found = attempt.match.found
        if attempt.committed:
            arguments = found.take()
            if arguments:
                out.tool_calls.append(ToolCallDelta(attempt.index, arguments=arguments))
        elif found.name is not None and found.num_arguments > self._hold:
            self._begin_call(attempt, out)
            self._held.clear()

    def _begin_call(self, attempt: _Attempt, out: ParsedDelta) -> None:
        found = attempt.match.found
        attempt.committed, attempt.index = True, self._num_calls
        self._num_calls += 1
        self._space.clear()
        self._after_call = True
        out.tool_calls.append(ToolCallDelta(attempt.index, found.name, found.take()))

    def _complete(self, attempt: _Attempt, out: ParsedDelta) -> None:
        """A way was read to its end."""
        way, layout = attempt.way, attempt.way.layout
        if way.is_call and not attempt.committed:
            self._begin_call(attempt, out)
        following: list[_Way] = []
        if way.is_call and layout.separator is not None:
            separator = Literal((layout.separator,), optional=layout.may_lack_separator)
            parts = (separator, *layout.call) if layout.separator else layout.call
            following.append(_Way(parts, layout, True, layout.closes))
        for place, closer in enumerate(way.closers_left):
            following.append(_Way((Literal((closer,)),), layout, False, way.closers_left[place + 1 :]))
        self._attempt = _Attempt(tuple(following), 0) if following else None

    def _fail(self, attempt: _Attempt, text: str, start: int, at: int) -> tuple[int, int]:
        """What was read from `start` to `at` is not what was tried. Returns the next (start, at)."""
        if attempt.committed:
            self._attempt = None
            return start, start
        self._again += at - start
        if attempt.next_way():
            return start, start + attempt.skip
        self._attempt = None
        position = self._num_fed - (len(text) - at)
        if self._again > _AGAIN_FACTOR * position + _AGAIN_FREE:
            self._content(text[start:at])
            return at, at
        if attempt.skip:
            self._content(text[start])
            start += 1
        return start, start

    def _content(self, text: str) -> None:
        """Give out text, but keep the white space at its end until it is clear what follows."""
        shown = text.rstrip(WHITE_SPACE)
        if shown:
            self._shown += (*self._space, shown)
            self._space.clear()
            self._after_call = False
        if len(shown) < len(text):
            self._space.append(text[len(shown) :])

    def _take_shown(self) -> str:
        shown = "".join(self._shown)
        self._shown.clear()
        return shown

    def _take_held(self) -> str:
        held = "".join(self._held)
        self._held.clear()
        return held
