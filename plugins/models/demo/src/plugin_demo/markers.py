"""Finding a marker in text that comes in pieces."""

from __future__ import annotations


def held_back(text: str, marker: str) -> int:
    """How many characters at the end of `text` could be the beginning of `marker` and must wait (0: none)."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def trailing_space(text: str) -> int:
    """How many characters of white space `text` ends with."""
    return len(text) - len(text.rstrip())
