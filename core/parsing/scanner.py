"""Finding strings in a stream of text pieces without ever letting a part of one out."""

from __future__ import annotations

from collections.abc import Sequence


class Scanner:
    """Looks for patterns in text that comes in pieces.

    Text that may be the beginning of a pattern is held back until it is decided. The match that *ends* first wins, and
    of those that end together the longest, so what comes out depends on the characters only, not on the pieces.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """patterns: non-empty strings."""
        self._patterns = tuple(dict.fromkeys(patterns))
        self._firsts = frozenset(pattern[0] for pattern in self._patterns)
        self._longest = max((len(pattern) for pattern in self._patterns), default=0)
        self._held = ""

    @property
    def held(self) -> str:
        """What is held back now."""
        return self._held

    def name_of(self, found: str) -> str:
        """The pattern that was found, as it was asked for."""
        return found

    def feed(self, text: str, *, armed: bool = True) -> tuple[str, str | None, str]:
        """Take a piece of text. Returns (text that is safe to show, pattern found or None, text after the pattern).

        After a match nothing is held. While not `armed`, patterns that end in this piece count as plain text.
        """
        if not self._held and self._firsts.isdisjoint(text):
            return text, None, ""
        buffer = self._held + text
        if armed:
            best: tuple[int, int, str] | None = None
            for pattern in self._patterns:
                # A pattern wholly inside the held text was let pass while not armed.
                start = buffer.find(pattern, max(0, len(self._held) - len(pattern) + 1))
                if start >= 0 and (best is None or (start + len(pattern), start) < best[:2]):
                    best = (start + len(pattern), start, pattern)
            if best is not None:
                end, start, pattern = best
                self._held = ""
                return buffer[:start], pattern, buffer[end:]
        keep = self._undecided(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], None, ""

    def flush(self) -> str:
        """The text is over: what was held back is plain text."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, buffer: str) -> int:
        """Length of the longest suffix that begins a pattern without completing it."""
        for position in range(max(0, len(buffer) - self._longest + 1), len(buffer)):
            if buffer[position] in self._firsts:
                suffix = buffer[position:]
                if any(len(p) > len(suffix) and p.startswith(suffix) for p in self._patterns):
                    return len(suffix)
        return 0


class Remover:
    """Takes every occurrence of some strings out of a stream of text."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._scanner = Scanner(patterns)

    def feed(self, text: str) -> str:
        """Take a piece; returns what is safe to show."""
        shown, found, rest = self._scanner.feed(text)
        while found is not None:
            safe, found, rest = self._scanner.feed(rest)
            shown += safe
        return shown

    def flush(self) -> str:
        """The text is over."""
        return self._scanner.flush()
