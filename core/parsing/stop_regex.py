"""Finding regular expressions in a stream of text, in time that is linear in the text whatever the expression.

An expression becomes a non-deterministic automaton whose states all advance together, a character at a time (Thompson
1968, "Regular Expression Search Algorithm"), so nothing is ever read twice and there is no backtracking to explode.
What such an automaton cannot do is refused: back references, looking ahead or behind, atomic groups.

The definition: the text ends with the shortest beginning of it in which an expression is found, in Python's syntax; so
`$` is the end of what has come, and repetition takes no more than it must. Of several matches in there the one that
ends first counts, and of those the one that begins first.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]  # the one reader of Python's own syntax
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from core.interfaces.errors import RequestError

MAX_STATES = 500
"""Of all expressions of a request together: what a character may cost."""
MAX_MATCH = 4096
"""Characters of a match that are held back and taken out; what comes before them in a longer one has been shown."""

Test = Callable[[str], bool]


class Beside(Enum):
    """What stands beside a place in the text, as far as anchors look at it."""

    NOTHING = auto()
    WORD = auto()
    LINE_BREAK = auto()
    OTHER = auto()


@dataclass(slots=True)
class _State:
    """test: of the character that leads to the first of `ways`; without it they are free. holds: when they are."""

    ways: tuple[int, ...] = ()
    test: Test | None = None
    holds: Callable[[Beside, Beside], bool] | None = None
    label: int = -1  # of the expression that is found here


@dataclass(slots=True)
class Program:
    """An automaton for several expressions. start: where a match may begin. anchored: some way is free at some places
    only."""

    labels: tuple[str, ...]
    states: list[_State] = field(default_factory=list)
    start: int = 0
    anchored: bool = False

    def spread(
        self, entries: Iterable[tuple[int, int]], before: Beside, after: Beside
    ) -> tuple[dict[int, int], tuple[int, int] | None]:
        """(states with a test that can be reached without a character, of the first match that is found here its
        beginning and label). entries: (state, where its match began), the earliest beginnings first: of two ways into
        one state that is all that counts."""
        live: dict[int, int] = {}
        seen: set[int] = set()
        found: tuple[int, int] | None = None
        states = self.states
        for entry, begin in entries:
            todo = [entry]
            while todo:
                number = todo.pop()
                if number in seen:
                    continue
                seen.add(number)
                state = states[number]
                if state.test is not None:
                    live[number] = begin
                elif state.label >= 0:
                    found = found or (begin, state.label)
                elif state.holds is None or state.holds(before, after):
                    todo += state.ways
        return live, found


@lru_cache(maxsize=256)
def compiled(expressions: tuple[str, ...], texts: tuple[str, ...] = ()) -> Program:
    """expressions: regular ones. texts: to be found as they stand. Raises RequestError naming stop_regex[i]."""
    program = Program((*texts, *expressions))
    starts = []
    for label, source in enumerate(program.labels):
        at = label - len(texts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = sre_parser.parse(source if at >= 0 else re.escape(source))
            builder = _Builder(program, tree.state.flags)
            starts.append(builder.sequence(tree, builder.add(_State(label=label))))
        except (re.error, OverflowError, RecursionError) as error:
            raise _refused(at, f"is no regular expression: {error}") from error
        except _Unsupported as error:
            raise _refused(at, str(error)) from error
        if program.spread([(starts[-1], 0)], Beside.NOTHING, Beside.NOTHING)[1] is not None:
            raise _refused(at, "is found in every text: it matches nothing at all")
    program.states.append(_State(tuple(starts)))
    program.start = len(program.states) - 1
    program.anchored = any(state.holds is not None for state in program.states)
    return program


class RegexScanner:
    """Looks for expressions in text that comes in pieces: `Scanner`'s counterpart, which see. What may be the beginning
    of a match is held back."""

    def __init__(self, expressions: Sequence[str], texts: Sequence[str] = ()) -> None:
        """texts: strings to be found beside them. Raises RequestError for expressions that cannot be used."""
        self._program = compiled(tuple(expressions), tuple(texts))
        self._entries: dict[int, int] = {}  # state -> where its match began
        self._before = Beside.NOTHING
        self._position = 0  # characters read
        self._armed = True  # whether a match might end where the text stands now
        self._held = ""
        self._label = -1
        self._live, _ = self._spread(Beside.NOTHING)

    @property
    def held(self) -> str:
        """What is held back now."""
        return self._held

    def name_of(self, found: str) -> str:
        """The expression, or the text, that was found."""
        return self._program.labels[self._label] if self._label >= 0 else found

    def feed(self, text: str, *, armed: bool = True) -> tuple[str, str | None, str]:
        """See `Scanner.feed`."""
        buffer = self._held + text
        base = self._position - len(self._held)
        for character in text:
            here = _beside(character)
            found, end = None, self._position
            if self._program.anchored:  # an anchor may have waited for this character
                self._live, found = self._spread(here)
                found = found if self._armed else None
            if found is None:
                self._step(character)
                self._before = here
                self._live, found = self._spread(Beside.NOTHING)
                found, end = found if armed else None, self._position
            self._armed = armed
            if found is not None:
                self._label = found[1]
                cut, end = max(found[0], end - MAX_MATCH) - base, end - base
                self._held = ""
                return buffer[:cut], buffer[cut:end], buffer[end:]
        shown = max(min(self._entries.values(), default=self._position), self._position - MAX_MATCH) - base
        self._held = buffer[shown:]
        return buffer[:shown], None, ""

    def flush(self) -> str:
        """The text is over: what was held back is plain text."""
        held, self._held = self._held, ""
        return held

    def _spread(self, after: Beside) -> tuple[dict[int, int], tuple[int, int] | None]:
        entries = (*self._entries.items(), (self._program.start, self._position))
        return self._program.spread(entries, self._before, after)

    def _step(self, character: str) -> None:
        """Take a character."""
        states = self._program.states
        entries: dict[int, int] = {}
        for number, begin in self._live.items():
            state = states[number]
            if state.test is not None and state.test(character):
                entries.setdefault(state.ways[0], begin)
        self._entries = entries
        self._position += 1


class _Unsupported(Exception):
    """What an automaton cannot do."""


class _Builder:
    """Adds an expression's states to a program, from its end to its beginning."""

    def __init__(self, program: Program, flags: int) -> None:
        self._program = program
        self._flags = flags

    def add(self, state: _State) -> int:
        """Its number."""
        if len(self._program.states) >= MAX_STATES:
            raise _Unsupported(f"is too large, with those before it: more than {MAX_STATES} states")
        self._program.states.append(state)
        return len(self._program.states) - 1

    def sequence(self, items: Any, following: int) -> int:
        """The state from which these items lead to `following`."""
        for kind, value in reversed(list(items)):
            following = self._item(kind, value, following)
        return following

    def _item(self, kind: Any, value: Any, following: int) -> int:
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN, sre.CATEGORY):
            return self.add(_State((following,), self._test(kind, value)))
        if kind is sre.BRANCH:
            return self.add(_State(tuple(self.sequence(way, following) for way in value[1])))
        if kind is sre.SUBPATTERN:
            _, added, removed, items = value
            outer, self._flags = self._flags, (self._flags | added) & ~removed
            made = self.sequence(items, following)
            self._flags = outer
            return made
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, repeated = value
            return self._repeat(least, most, repeated, following)
        if kind is sre.AT:
            return self.add(_State((following,), holds=self._anchor(value)))
        raise _Unsupported(f"has {str(kind).lower().replace('_', ' ')}, which is not supported")

    def _repeat(self, least: int, most: int, items: Any, following: int) -> int:
        if most is sre.MAXREPEAT:
            loop = self.add(_State())
            self._program.states[loop].ways = (self.sequence(items, loop), following)
            made = loop
        else:
            made = following
            for _ in range(most - least):
                made = self.add(_State((self.sequence(items, made), following)))
        for _ in range(least):
            made = self.sequence(items, made)
        return made

    def _anchor(self, kind: Any) -> Callable[[Beside, Beside], bool]:
        lines = bool(self._flags & re.MULTILINE)
        edges = (Beside.NOTHING, Beside.LINE_BREAK) if lines else (Beside.NOTHING,)
        if kind is sre.AT_BEGINNING:
            return lambda before, after: before in edges
        if kind is sre.AT_BEGINNING_STRING:
            return lambda before, after: before is Beside.NOTHING
        if kind is sre.AT_END:
            return lambda before, after: after in edges
        if kind is sre.AT_END_STRING:
            return lambda before, after: after is Beside.NOTHING
        if kind is sre.AT_BOUNDARY:
            return lambda before, after: (before is Beside.WORD) != (after is Beside.WORD)
        if kind is sre.AT_NON_BOUNDARY:
            return lambda before, after: (before is Beside.WORD) == (after is Beside.WORD)
        raise _Unsupported(f"has {str(kind).lower()}, which is not supported")

    def _test(self, kind: Any, value: Any) -> Test:
        """Whether a character is one of these."""
        if kind is sre.NOT_LITERAL:
            return _negated(self._folded(chr(value).__eq__))
        if kind is sre.LITERAL:
            return self._folded(chr(value).__eq__)
        if kind is sre.ANY:
            return (lambda c: True) if self._flags & re.DOTALL else "\n".__ne__
        if kind is sre.RANGE:
            low, high = map(chr, value)
            return self._folded(lambda c: low <= c <= high)
        if kind is sre.CATEGORY:
            return self._category(value)
        if kind is sre.IN and value[0][0] is sre.NEGATE:
            return _negated(self._test(kind, value[1:]))
        if kind is sre.IN:
            tests = tuple(self._test(*member) for member in value)
            return tests[0] if len(tests) == 1 else lambda c: any(test(c) for test in tests)
        raise _Unsupported(f"has {str(kind).lower()}, which is not supported")

    def _folded(self, test: Test) -> Test:
        if self._flags & re.IGNORECASE:
            return lambda c: test(c) or test(c.lower()) or test(c.upper())
        return test

    def _category(self, kind: Any) -> Test:
        word, digit, space = _is_word, str.isdecimal, str.isspace
        named: dict[Any, tuple[Test, bool]] = {
            sre.CATEGORY_WORD: (word, True), sre.CATEGORY_NOT_WORD: (word, False),
            sre.CATEGORY_DIGIT: (digit, True), sre.CATEGORY_NOT_DIGIT: (digit, False),
            sre.CATEGORY_SPACE: (space, True), sre.CATEGORY_NOT_SPACE: (space, False),
        }  # fmt: skip
        test, wanted = named[kind]
        if self._flags & re.ASCII:
            return lambda c: (c.isascii() and test(c)) == wanted
        return lambda c: test(c) == wanted


def _negated(test: Test) -> Test:
    return lambda c: not test(c)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _beside(character: str) -> Beside:
    if character == "\n":
        return Beside.LINE_BREAK
    return Beside.WORD if _is_word(character) else Beside.OTHER


def _refused(index: int, told: str) -> RequestError:
    name = f"stop_regex[{index}]"
    return RequestError(f"{name} {told}", param=name)
