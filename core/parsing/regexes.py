"""Regular expressions of users, before a grammar library sees them. An expression stands for whole texts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.interfaces.errors import RequestError
from core.parsing.structure_tree import no_nul

_PIECE = re.compile(
    r"\\[xupP]\{[^}]*\}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\."
    r"|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\{\d+(?:,\d*)?\}|.",
    re.DOTALL,
)


def whole_text(pattern: str, *, path: str = "$", max_repeat: int = 10_000, max_chars: int = 1 << 16) -> str:
    """`pattern` without `^` in front and `$` at the end, which say nothing of an expression for whole texts.

    Raises RequestError naming `path`: NUL characters, anchors elsewhere, bounds over `max_repeat`, too long.
    """
    no_nul(pattern, path)
    if len(pattern) > max_chars:
        raise RequestError(f"{path}: the expression has {len(pattern)} characters; the limit is {max_chars}")
    pieces = list(pieces_of(pattern))
    _check_bounds(pieces, path, max_repeat)
    if "|" not in pieces or _is_one_group(pieces):
        pieces = pieces[1:] if pieces[:1] == ["^"] else pieces
        pieces = pieces[:-1] if pieces[-1:] == ["$"] else pieces
    else:
        pieces = [piece for at, piece in enumerate(pieces) if not _at_an_edge(pieces, at)]
    for piece in pieces:
        if piece in ("^", "$", "\\A", "\\z", "\\Z", "\\b", "\\B"):
            raise RequestError(
                f"{path}: {piece!r} is not supported but for `^` and `$` at the edges, as an expression stands for "
                "whole texts"
            )
    return "".join(pieces)


def check_bounds(pattern: str, *, path: str, max_repeat: int, max_chars: int = 1 << 16) -> None:
    """Refuse NUL characters, bounds over `max_repeat` and patterns that are too long. Raises RequestError."""
    no_nul(pattern, path)
    if len(pattern) > max_chars:
        raise RequestError(f"{path}: the expression has {len(pattern)} characters; the limit is {max_chars}")
    _check_bounds(list(pieces_of(pattern)), path, max_repeat)


def anchors(pattern: str) -> tuple[bool, bool, bool]:
    """Whether a pattern begins with `^`, ends with `$`, and has either elsewhere."""
    pieces = list(pieces_of(pattern))
    first, last = pieces[:1] == ["^"], pieces[-1:] == ["$"]
    inner = pieces[1 if first else 0 : len(pieces) - 1 if last else None]
    return first, last, "^" in inner or "$" in inner


def has_alternatives(pattern: str) -> bool:
    """Whether `|` stands outside of any group."""
    depth = 0
    for piece in pieces_of(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            return True
    return False


def pieces_of(pattern: str) -> Iterator[str]:
    """Escapes, character classes, bounds and single characters, in order."""
    for found in _PIECE.finditer(pattern):
        yield found.group()


def _check_bounds(pieces: list[str], path: str, max_repeat: int) -> None:
    for piece in pieces:
        if piece.startswith("{") and len(piece) > 1:
            numbers = [number for number in piece[1:-1].split(",") if number]
            if any(len(number) > 9 or int(number) > max_repeat for number in numbers):
                raise RequestError(f"{path}: {piece} repeats more than {max_repeat} times")


def _is_one_group(pieces: list[str]) -> bool:
    """Whether every `|` is inside of a group."""
    return not has_alternatives("".join(pieces))


def _at_an_edge(pieces: list[str], at: int) -> bool:
    """`^` at the beginning or `$` at the end of an alternative that is in no group."""
    depth = sum((piece == "(") - (piece == ")") for piece in pieces[:at])
    if depth:
        return False
    if pieces[at] == "^":
        return at == 0 or pieces[at - 1] == "|"
    return pieces[at] == "$" and (at + 1 == len(pieces) or pieces[at + 1] == "|")
