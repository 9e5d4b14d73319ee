"""Reading one call by its parts, character by character. What comes of it is `call_stream`'s to give out."""

from __future__ import annotations

import json
import re
from typing import Protocol

from core.parsing.json_calls import Arguments, CallObject, Literal, Name, Part, Word
from core.parsing.json_text import JsonScanner, skip_space

MAX_NAME = 256
"""Characters of a name outside of JSON."""

_NAME = re.compile(r"[\w.:/-]*")
_INDEX = re.compile(r":[0-9]+\Z")


class Found:
    """What is known of a call so far.

    name: None until it is known. arguments: their text, in the pieces that nobody took yet. num_arguments: characters
    of them so far, counted only if they come as they are written. arguments_end: they are complete.
    end_at: the index behind the later of name and arguments, in the text of the last feed if they ended there, else -1.
    """

    __slots__ = ("arguments", "arguments_end", "end_at", "name", "num_arguments")

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self.num_arguments = 0
        self.arguments_end = False
        self.end_at = -1

    def add(self, text: str) -> None:
        """More of the arguments, as written."""
        if text:
            self.arguments.append(text)
            self.num_arguments += len(text)

    def take(self) -> str:
        """The arguments' text since the last `take`."""
        text = "".join(self.arguments)
        self.arguments.clear()
        return text

    def end_arguments(self, at: int) -> None:
        """The arguments are complete before index `at`."""
        self.arguments_end, self.end_at = True, at

    def set_name(self, name: str, at: int) -> None:
        """The name is complete before index `at`."""
        self.name = name
        if self.arguments_end:
            self.end_at = at


class Matcher(Protocol):
    """One part. `feed` takes characters from index `at` and returns the index behind the last one it took; less than
    the end of the text only if the part is `complete` or has `failed`."""

    complete: bool
    failed: bool

    def feed(self, text: str, at: int) -> int: ...


class CallMatch:
    """Some parts in order, with white space between them: a call, or something else of the format.

    complete, failed: as of the last character fed. whole: nothing but end markers is missing.
    """

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.found = Found()
        self._parts = parts
        self._next = 0
        self._matcher: Matcher | None = None
        self.complete = not parts
        self.failed = False

    @property
    def whole(self) -> bool:
        """Whether the text may end here: name and arguments are complete."""
        if not self.found.arguments_end or self.failed:
            return False
        return self._matcher is None or isinstance(self._matcher, _LiteralMatcher)

    def feed(self, text: str, at: int) -> int:
        """Take characters from index `at`. Returns the index behind the last one taken."""
        self.found.end_at = -1
        length = len(text)
        while not (self.complete or self.failed):
            if self._matcher is None:
                at = skip_space(text, at)
                if at == length:
                    return at
                part = self._parts[self._next]
                if isinstance(part, Literal) and part.optional and not _begins(part, text[at]):
                    self._advance()
                    continue
                self._matcher = _matcher(part, self.found)
            at = self._matcher.feed(text, at)
            if self._matcher.failed:
                self.failed = True
            elif self._matcher.complete:
                self._matcher = None
                self._advance()
            else:
                return at
        return at

    def _advance(self) -> None:
        self._next += 1
        self.complete = self._next == len(self._parts)


class _LiteralMatcher:
    def __init__(self, options: tuple[str, ...]) -> None:
        self._options = options
        self._so_far = ""
        self.complete = self.failed = False

    def feed(self, text: str, at: int) -> int:
        while at < len(text):
            longer = self._so_far + text[at]
            self._options = tuple(option for option in self._options if option.startswith(longer))
            if not self._options:
                self.failed = True
                return at
            self._so_far = longer
            at += 1
            if longer in self._options:
                self.complete = True
                return at
        return at


class _NameMatcher:
    """Complete at the first character that no name has."""

    def __init__(self, part: Name | Word, found: Found) -> None:
        self._part, self._found = part, found
        self._pieces: list[str] = []
        self._length = 0
        self.complete = self.failed = False

    def feed(self, text: str, at: int) -> int:
        end = _NAME.match(text, at, at + MAX_NAME - self._length).end()  # type: ignore[union-attr]  # matches everywhere
        self._pieces.append(text[at:end])
        self._length += end - at
        if end == len(text):
            return end
        name = "".join(self._pieces)
        if isinstance(self._part, Name):
            name = _INDEX.sub("", name) if self._part.index else name
            name = name.removeprefix(self._part.prefix)
        self.complete = bool(name) and not _NAME.match(text[end]).end()  # type: ignore[union-attr]
        self.failed = not self.complete
        if self.complete and isinstance(self._part, Name):
            self._found.set_name(name, end)
        return end


class _ArgumentsMatcher:
    def __init__(self, found: Found) -> None:
        self._found = found
        self._scanner: JsonScanner | None = None
        self.complete = self.failed = False

    def feed(self, text: str, at: int) -> int:
        if self._scanner is None:
            if text[at] != "{":
                self.failed = True
                return at
            self._scanner = JsonScanner()
        end = self._scanner.feed(text, at)
        self._found.add(text[at:end])
        self.failed, self.complete = self._scanner.failed, self._scanner.complete
        if self.complete:
            self._found.end_arguments(end)
        return end


_OPEN, _KEY, _COLON, _VALUE, _AFTER = "{", "key", ":", "value", "after"


class _ObjectMatcher:
    """The object around name and arguments, read member by member; only arguments may be large and are not kept."""

    def __init__(self, part: CallObject, found: Found) -> None:
        self._part, self._found = part, found
        self._state = _OPEN
        self._first = True  # no member has come
        self._seen: set[str] = set()
        self._role = ""  # of the value: "name", "arguments" or "" for one that is not looked at
        self._as_written = False  # the value is arguments, and they go out as they come
        self._scanner: JsonScanner | None = None
        self._value: list[str] = []
        self.complete = self.failed = False

    def feed(self, text: str, at: int) -> int:
        length = len(text)
        while not (self.complete or self.failed):
            if self._scanner is None:
                at = skip_space(text, at)
            if at == length:
                break
            if self._scanner is not None:
                at = self._scan(text, at)
            elif self._state in (_KEY, _VALUE):
                self._begin(text[at])
            else:
                at += self._between(text[at])
        return at

    def _between(self, character: str) -> int:
        """A character of the object's own. Returns whether it was taken."""
        if self._state == _OPEN and character == "{":
            self._state = _KEY
        elif self._state == _COLON and character == ":":
            self._state = _VALUE
        elif self._state == _AFTER and character == ",":
            self._state = _KEY
        elif self._state == _AFTER and character == "}":
            return self._close()
        else:
            self.failed = True
        return not self.failed

    def _begin(self, character: str) -> None:
        """The first character of a key or value."""
        self._as_written = self._state == _VALUE and self._role == "arguments" and character == "{"
        needs_string = self._state == _KEY or (bool(self._role) and not self._as_written)
        none = self._state == _VALUE and self._role == "arguments" and character == "n"
        if needs_string and not none and character != '"':
            self.failed = True  # an empty object, too, is no call
            return
        self._scanner = JsonScanner()
        self._value.clear()

    def _scan(self, text: str, at: int) -> int:
        scanner = self._scanner
        assert scanner is not None
        end = scanner.feed(text, at)
        if self._as_written:
            self._found.add(text[at:end])
        elif self._state == _KEY or self._role:
            self._value.append(text[at:end])
        if scanner.failed:
            self.failed = True
        elif scanner.complete:
            self._scanner = None
            if self._state == _KEY:
                self._take_key()
            else:
                self._take_value(end)
        return end

    def _take_key(self) -> None:
        key = json.loads("".join(self._value))
        part = self._part
        role = "name" if key in part.name_keys else "arguments" if key in part.argument_keys else ""
        once = role or f"key {key}"
        self.failed = once in self._seen or not (role or key in part.ignored_keys)
        self._seen.add(once)
        self._role, self._state = role, _COLON

    def _take_value(self, end: int) -> None:
        self._state = _AFTER
        if self._role == "name":
            name = json.loads("".join(self._value))
            self.failed = not (name and _is_text(name))
            if not self.failed:
                self._found.set_name(name, end)
        elif self._as_written:
            self._found.end_arguments(end)
        elif self._role == "arguments":
            inner = json.loads("".join(self._value))
            inner = "{}" if inner is None else inner
            self.failed = not (_is_text(inner) and _is_object(inner))
            if not self.failed:
                self._found.arguments.append(inner)
                self._found.end_arguments(end)

    def _close(self) -> int:
        if "name" not in self._seen or ("arguments" not in self._seen and self._part.needs_arguments):
            self.failed = True
            return 0
        if "arguments" not in self._seen:
            self._found.arguments.append("{}")
            self._found.end_arguments(-1)
        self.complete = True
        return 1


def _is_text(decoded: str) -> bool:
    """False for halves of surrogate pairs, which JSON may escape and no encoding can send."""
    return not any("\ud800" <= character <= "\udfff" for character in decoded)


def _is_object(text: str) -> bool:
    at = skip_space(text, 0)
    scanner = JsonScanner()
    end = scanner.feed(text, at)
    return text[at : at + 1] == "{" and scanner.complete and skip_space(text, end) == len(text)


def _begins(part: Literal, character: str) -> bool:
    return any(option.startswith(character) for option in part.options)


def _matcher(part: Part, found: Found) -> Matcher:
    if isinstance(part, Literal):
        return _LiteralMatcher(part.options)
    if isinstance(part, (Name, Word)):
        return _NameMatcher(part, found)
    if isinstance(part, Arguments):
        return _ArgumentsMatcher(found)
    return _ObjectMatcher(part, found)
