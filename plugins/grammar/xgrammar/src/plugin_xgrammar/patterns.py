"""Expressions for the library, each part that fits one character spelled out.

It holds a JSON string's `pattern` against what stands between the quotes, and lets `.` and `[^a]` be quotes, control
characters and what is no UTF-8 there; it reads on after `\\x41`. So each such part is replaced by a set of the
characters themselves; in JSON, of the escapes too that a character may look like.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.interfaces.errors import RequestError
from core.parsing.regexes import anchors, check_bounds, has_alternatives, pieces_of, whole_text

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
# What may stand in a JSON string as it is: no control characters, quotes, backslashes or halves of surrogate pairs.
IN_JSON: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, LAST))
IN_TEXT: Ranges = ((0x01, 0xD7FF), (0xE000, LAST))
ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}
_CLASSES: dict[str, Ranges] = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x09, 0x0D), (0x20, 0x20)),
}
_NAMED = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B}
_MARKS = frozenset("()|*+?{}")


def any_character() -> str:
    """An expression for one character of a JSON string."""
    return one_of(((1, LAST),))


def plain_character() -> str:
    """An expression for one character of a JSON string that is no escape."""
    return f"[{''.join(_range(low, high) for low, high in IN_JSON)}]"


def one_of(ranges: Ranges, in_json: bool = True) -> str:
    """An expression for one character of the ranges, as it is or as JSON has it."""
    plain = "".join(_range(low, high) for low, high in _common(ranges, IN_JSON if in_json else IN_TEXT))
    escapes = "".join(_quoted(ord(mark)) for code, mark in ESCAPES.items() if in_json and _has(ranges, code))
    options = ([f"[{plain}]"] if plain else []) + ([f"\\\\[{escapes}]"] if escapes else [])
    return options[0] if len(options) == 1 else f"({'|'.join(options)})"


def text_pattern(pattern: str, path: str, max_repeat: int) -> str:
    """An expression for whole texts. Raises RequestError naming `path`."""
    whole = whole_text(pattern, path=path, max_repeat=max_repeat)
    return "".join(_piece(piece, path, in_json=False) for piece in pieces_of(whole))


def json_pattern(pattern: str, path: str, max_repeat: int) -> str:
    """A schema's `pattern`, anchored, against JSON text. Raises RequestError naming `path`."""
    check_bounds(pattern, path=path, max_repeat=max_repeat)
    first, last, inner = anchors(pattern)
    if inner or (has_alternatives(pattern) and (first or last)):
        raise _refused(path, "`^` and `$` are supported at the edges of the whole pattern only")
    pieces = list(pieces_of(pattern))[1 if first else 0 : -1 if last else None]
    inside = "".join(_piece(piece, path, in_json=True) for piece in pieces)
    anything = f"{any_character()}*"
    return f"^{'' if first else anything}({inside}){'' if last else anything}$"


def _piece(piece: str, path: str, in_json: bool) -> str:
    if piece in _MARKS or piece == ":" or (piece.startswith("{") and len(piece) > 1):
        return piece
    if piece == ".":
        ranges = _others(((0x0A, 0x0A),))
    elif piece.startswith("[") and len(piece) > 1:
        ranges = _class(piece, path)
    elif piece.startswith("\\"):
        ranges = _escape(piece, path)
    else:
        ranges = ((ord(piece), ord(piece)),)
    made = one_of(ranges, in_json)
    if made == "()":
        raise _refused(path, f"{piece!r} fits no character that is supported")
    return made


def _class(piece: str, path: str) -> Ranges:
    inside = piece[1:-1]
    negated = inside.startswith("^")
    parts = list(pieces_of_class(inside[1:] if negated else inside))
    members = [_member(part, path) for part in parts]
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(members):
        if at + 2 < len(parts) and parts[at + 1] == "-":  # an escaped one is a character like any other
            low, high = members[at], members[at + 2]
            if len(low) > 1 or len(high) > 1 or low[0][0] != low[0][1] or high[0][0] < low[0][0]:
                raise _refused(path, f"the range in {piece!r} is not supported")
            ranges.append((low[0][0], high[0][1]))
            at += 3
        else:
            ranges += members[at]
            at += 1
    made = tuple(ranges)
    return _others(made) if negated else made


def pieces_of_class(inside: str) -> Iterator[str]:
    """Escapes and single characters of what stands between brackets."""
    at = 0
    while at < len(inside):
        piece = next(pieces_of(inside[at:])) if inside[at] == "\\" else inside[at]
        yield piece
        at += len(piece)


def _member(part: str, path: str) -> Ranges:
    return _escape(part, path) if part.startswith("\\") else ((ord(part), ord(part)),)


def _escape(piece: str, path: str) -> Ranges:
    mark = piece[1:2]
    if mark.lower() in _CLASSES and len(piece) == 2:
        ranges = _CLASSES[mark.lower()]
        return ranges if mark.islower() else _others(ranges)
    if mark in ("x", "u") and len(piece) > 2:
        digits = piece[2:].strip("{}")
        if digits and all(char in "0123456789abcdefABCDEF" for char in digits) and 0 < int(digits, 16) <= LAST:
            return ((int(digits, 16), int(digits, 16)),)
    if mark in _NAMED:
        return ((_NAMED[mark], _NAMED[mark]),)
    if len(piece) == 2 and not mark.isalnum():
        return ((ord(mark), ord(mark)),)
    raise _refused(path, f"{piece!r} is not supported")


def _others(ranges: Ranges) -> Ranges:
    made, low = [], 1
    for first, last in sorted(ranges):
        if first > low:
            made.append((low, first - 1))
        low = max(low, last + 1)
    return (*made, (low, LAST)) if low <= LAST else tuple(made)


def _common(ranges: Ranges, others: Ranges) -> Ranges:
    pairs = ((max(a, c), min(b, d)) for a, b in ranges for c, d in others)
    return tuple(sorted({(low, high) for low, high in pairs if low <= high}))


def _has(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _range(low: int, high: int) -> str:
    return _quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}"


def _quoted(code: int) -> str:
    char = chr(code)
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    return f"\\{char}" if char in "\\^$.|?*+()[]{}-/" else char


def _refused(path: str, what: str) -> RequestError:
    return RequestError(f"{path}: {what} (grammar backend xgrammar)")
