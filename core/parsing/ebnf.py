"""EBNF in the GBNF spelling (`root ::= "a" [0-9]+ | other`), read into rules that any grammar backend can be fed from.

Taken: literals, character sets, `.`, rule names, groups, `|`, `*`, `+`, `?`, `{n}`, `{n,}`, `{n,m}`, `#` comments;
escapes \\n \\r \\t \\\\ \\" \\' \\[ \\] \\- \\^ \\/ \\xHH \\uHHHH \\UHHHHHHHH.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.interfaces.errors import RequestError

MAX_CODE_POINT = 0x10FFFF


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class CharSet:
    """One character out of `ranges` (both ends included), or out of all others."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; None: without end."""

    body: Node
    least: int
    most: int | None


Node = Literal | CharSet | Ref | Seq | Alt | Repeat
Rules = Mapping[str, Node]

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+|\#[^\n]*)|(?P<define>[A-Za-z_][\w.-]*[ \t]*::=)|(?P<name>[A-Za-z_][\w.-]*)"""
    r"""|(?P<literal>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<set>\[(?:[^\]\\\n]|\\.)*\])"""
    r"""|(?P<bounds>\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})|(?P<mark>[()|*+?.])"""
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt\\\"'\[\]^/-]))")
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}


def parse_ebnf(text: str, *, max_repeat: int = 10_000, max_depth: int = 64, max_bytes: int = 1 << 18) -> Rules:
    """Rules by name; the grammar begins at "root". Raises RequestError with the line of what is wrong: syntax, a rule
    that is missing or defined twice, bounds over `max_repeat`, groups deeper than `max_depth`, too long a text."""
    if len(text) > max_bytes:
        raise RequestError(f"the EBNF grammar has {len(text)} characters; the limit is {max_bytes}", param="ebnf")
    if "\0" in text:
        raise RequestError("the EBNF grammar has a NUL character, which is not supported", param="ebnf")
    parser = _Parser(list(_tokens(text)), max_repeat, max_depth)
    rules = parser.rules()
    if "root" not in rules:
        raise RequestError("the EBNF grammar has no rule `root`, where texts begin", param="ebnf")
    for name, body in rules.items():
        for ref in references(body):
            if ref not in rules:
                raise RequestError(f"EBNF rule `{name}` uses `{ref}`, which is not defined", param="ebnf")
    _refuse_endless(rules)
    return rules


def references(node: Node) -> Iterator[str]:
    """Names of rules that a node uses, with repetitions."""
    match node:
        case Ref(name):
            yield name
        case Seq(parts) | Alt(parts):
            for part in parts:
                yield from references(part)
        case Repeat(body):
            yield from references(body)


def is_recursive(rules: Rules) -> bool:
    """Whether a rule that `root` reaches reaches itself."""
    done: set[str] = set()
    for start in rules:
        if start in done:
            continue
        path: dict[str, Iterator[str]] = {start: references(rules[start])}
        while path:
            name = next(reversed(path))
            following = next(path[name], None)
            if following is None:
                path.pop(name)
                done.add(name)
            elif following in path:
                return True
            elif following not in done:
                path[following] = references(rules[following])
    return False


def _refuse_endless(rules: Rules) -> None:
    """Every rule must have a text: `a ::= "x" a` has none."""
    ending: set[str] = set()
    while True:
        more = {name for name, body in rules.items() if name not in ending and _ends(body, ending)}
        if not more:
            break
        ending |= more
    for name in rules:
        if name not in ending:
            raise RequestError(f"EBNF rule `{name}` fits no text: it needs itself without end", param="ebnf")


def _ends(node: Node, ending: set[str]) -> bool:
    match node:
        case Ref(name):
            return name in ending
        case Seq(parts):
            return all(_ends(part, ending) for part in parts)
        case Alt(options):
            return any(_ends(option, ending) for option in options)
        case Repeat(body, least):
            return least == 0 or _ends(body, ending)
        case CharSet(ranges, negated):
            return negated or bool(ranges)
    return True


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    line = 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _error(line, f"{text[at : at + 20]!r} is no EBNF")
        kind = found.lastgroup or ""
        if kind != "blank":
            yield _Token(kind, found.group(), line)
        line += found.group().count("\n")
        at = found.end()


class _Parser:
    def __init__(self, tokens: list[_Token], max_repeat: int, max_depth: int) -> None:
        self._tokens = tokens
        self._at = 0
        self._max_repeat = max_repeat
        self._max_depth = max_depth

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind != "define":
                raise _error(token.line, f"expected `name ::=`, not {token.text!r}")
            self._at += 1
            name = token.text[:-3].strip()
            if name in rules:
                raise _error(token.line, f"rule `{name}` is defined twice")
            rules[name] = self._options(0)
            rest = self._peek()
            if rest is not None and rest.kind != "define":
                raise _error(rest.line, f"{rest.text!r} is out of place")
        return rules

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _options(self, depth: int) -> Node:
        options = [self._sequence(depth)]
        while (token := self._peek()) is not None and token.text == "|" and token.kind == "mark":
            self._at += 1
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while (token := self._peek()) is not None and token.kind != "define":
            if token.kind == "mark" and token.text in "|)":
                break
            parts.append(self._repeated(self._single(token, depth)))
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _single(self, token: _Token, depth: int) -> Node:
        self._at += 1
        if token.kind == "name":
            return Ref(token.text)
        if token.kind == "literal":
            return Literal("".join(_characters(token.text[1:-1], token.line)))
        if token.kind == "set":
            return _set(token)
        if token.text == ".":
            return CharSet((), negated=True)
        if token.text == "(":
            if depth >= self._max_depth:
                raise _error(token.line, f"groups are nested deeper than {self._max_depth}")
            inner = self._options(depth + 1)
            closing = self._peek()
            if closing is None or closing.text != ")":
                raise _error(token.line, "a group is not closed")
            self._at += 1
            return inner
        raise _error(token.line, f"{token.text!r} follows nothing that it could repeat")

    def _repeated(self, node: Node) -> Node:
        while (token := self._peek()) is not None:
            if token.kind == "bounds":
                node = self._bounded(node, token)
            elif token.kind == "mark" and token.text in "*+?":
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[token.text]
                node = Repeat(node, least, most)
            else:
                break
            self._at += 1
        return node

    def _bounded(self, node: Node, token: _Token) -> Node:
        first, comma, last = token.text[1:-1].replace(" ", "").partition(",")
        if len(first) > 9 or len(last) > 9 or max(int(first), int(last or 0)) > self._max_repeat:
            raise _error(token.line, f"{token.text} repeats more than {self._max_repeat} times")
        least = int(first)
        most = least if not comma else int(last) if last else None
        if most is not None and most < least:
            raise _error(token.line, f"{token.text} ends before it begins")
        return Repeat(node, least, most)


def _set(token: _Token) -> CharSet:
    body = token.text[1:-1]
    negated = body.startswith("^")
    plain: list[tuple[str, bool]] = []  # characters, and whether they were escaped
    at = 1 if negated else 0
    while at < len(body):
        if body[at] == "\\":
            found = _escape(body, at, token.line)
            plain.append((_unescaped(found, token.line), True))
            at = found.end()
        else:
            plain.append((body[at], False))
            at += 1
    ranges = []
    index = 0
    while index < len(plain):
        first = last = plain[index][0]
        if index + 2 < len(plain) and plain[index + 1] == ("-", False):
            last = plain[index + 2][0]
            index += 2
        if last < first:
            raise _error(token.line, f"the range {first}-{last} is empty")
        ranges.append((ord(first), ord(last)))
        index += 1
    if not ranges and not negated:
        raise _error(token.line, "[] fits no character")
    return CharSet(tuple(ranges), negated)


def _characters(body: str, line: int) -> Iterator[str]:
    at = 0
    while at < len(body):
        if body[at] == "\\":
            found = _escape(body, at, line)
            yield _unescaped(found, line)
            at = found.end()
        else:
            yield body[at]
            at += 1


def _escape(body: str, at: int, line: int) -> re.Match[str]:
    found = _ESCAPE.match(body, at)
    if found is None:
        raise _error(line, f"{body[at : at + 2]!r} is no escape that is supported")
    return found


def _unescaped(found: re.Match[str], line: int) -> str:
    code = found.group(1) or found.group(2) or found.group(3)
    if code is None:
        return _NAMED.get(found.group(4), found.group(4))
    number = int(code, 16)
    if number == 0 or number > MAX_CODE_POINT or 0xD800 <= number <= 0xDFFF:
        raise _error(line, f"{found.group()} is no character that a text can have")
    return chr(number)


def _error(line: int, what: str) -> RequestError:
    return RequestError(f"EBNF line {line}: {what}", param="ebnf")
