"""Structures and EBNF as grammars of the library (a dialect of Lark).

Its lexer is greedy and never goes back, so the text between two schemas is made one regular expression: then nothing
depends on where a lexeme ends. EBNF without recursion becomes one expression too; with recursion every character is a
lexeme of its own, which is slower and exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import RequestError
from core.interfaces.grammar import Structure
from core.parsing.ebnf import Alt, CharSet, Literal, Node, Ref, Repeat, Rules, Seq, is_recursive
from core.parsing.schema_rules import Schema

# Where only one text can follow, the library's masks would allow but one way to cut it into tokens.
OPTIONS = '%llguidance {"no_forcing": true}'
MAX_EXPRESSION = 1 << 18  # characters


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the grammar: a regular expression to put between slashes with what is not to fit (`without`), or, not
    regular, the right side of a rule."""

    text: str
    regular: bool


class Writer:
    """Collects rules and terminals while a structure is translated."""

    def __init__(
        self,
        schema: Callable[[Any, str], dict[str, Any]],
        expression: Callable[[str, str], str],
        ebnf: Callable[[str], Rules],
    ) -> None:
        """schema: (schema, path) -> schema with the library's options; expression: (pattern, path) -> what may stand
        between slashes; ebnf: text -> rules. All raise RequestError."""
        self._schema = schema
        self._expression = expression
        self._ebnf = ebnf
        self._lines: list[str] = []

    @staticmethod
    def of_schema(schema: Schema) -> str:
        """A grammar of one schema, with the library's options in it."""
        return f"{OPTIONS}\nstart: %json {json.dumps(schema)}"

    def grammar(self, part: Part) -> str:
        """All of it, beginning with `part`."""
        start = self._symbol(part)
        return "\n".join([OPTIONS, f"start: {start}", *self._lines])

    def schema(self, schema: Any, path: str) -> Part:
        return Part(f"%json {json.dumps(self._schema(schema, path))}", regular=False)

    # Structures

    def node(self, node: Structure, path: str = "$", tail: str = "", last: bool = True) -> Part:
        """`node` and then the text `tail`. last: whether nothing follows, so that free text may end anywhere."""
        match node["type"]:
            case "const_string":
                return literal(node["value"] + tail)
            case "regex":
                return self._joined([_regular(self._expression(node["pattern"], f"{path}.pattern")), literal(tail)])
            case "json_schema":
                return self._joined([self.schema(node["json_schema"], f"{path}.json_schema"), literal(tail)])
            case "grammar":
                return self._joined([self.ebnf(self._ebnf(node["grammar"])), literal(tail)])
            case "any_text":
                self._refuse_open(path, tail, last)
                return self._free((), tail)
            case "sequence":
                return self._sequence(node["elements"], path, tail, last)
            case "or":
                elements = enumerate(node["elements"])
                return self._either([self.node(part, f"{path}.elements[{i}]", tail, last) for i, part in elements])
            case "tag":
                return self._tag(node, path, tail)
            case "triggered_tags":
                return self._triggered(node, path, tail, last)
            case _:
                return self._separated(node, path, tail)

    def _sequence(self, elements: Sequence[Structure], path: str, tail: str, last: bool) -> Part:
        """From the end to the beginning: a fixed text is what the element before it ends at."""
        parts: list[Part] = []
        for index in reversed(range(len(elements))):
            element, here = elements[index], f"{path}.elements[{index}]"
            if element["type"] == "const_string":
                tail = element["value"] + tail
                continue
            if element["type"] == "tag":
                parts.insert(0, self._tag(element, here, tail, begins=False))
                tail = element["begin"]
            else:
                parts.insert(0, self.node(element, here, tail, last and not parts))
                tail = ""
        return self._joined([literal(tail), *parts])

    def _tag(self, tag: Structure, path: str, tail: str, begins: bool = True, skip: int = 0) -> Part:
        """skip: characters of `begin` that came before."""
        content = self.node(tag["content"], f"{path}.content", tag["end"] + tail, last=False)
        return self._joined([literal(tag["begin"][skip:] if begins else ""), content])

    def _triggered(self, node: Structure, path: str, tail: str, last: bool) -> Part:
        self._refuse_open(path, tail, last)
        triggers: Sequence[str] = node["triggers"]
        tags = list(enumerate(node["tags"]))
        stop = tail if node["stop_after_first"] else ""

        def bodies(trigger: str, begins: bool) -> Part:
            skip = 0 if begins else len(trigger)
            fitting = [(i, tag) for i, tag in tags if tag["begin"].startswith(trigger)]
            return self._either([self._tag(tag, f"{path}.tags[{i}]", stop, skip=skip) for i, tag in fitting])

        direct = self._either([bodies(trigger, begins=True) for trigger in triggers])
        if node["at_least_one"] and node["stop_after_first"]:
            return direct
        reached = [
            self._joined([self._up_to(trigger, (*triggers, tail)), bodies(trigger, begins=False)])
            for trigger in triggers
        ]
        after_text, free = self._symbol(self._either(reached)), self._symbol(self._free(triggers, tail))
        if node["stop_after_first"]:
            return Part(f"{after_text} | {free}", regular=False)
        start = f"{self._symbol(direct)} " if node["at_least_one"] else ""
        return Part(f"{start}({after_text})* {free}", regular=False)

    def _separated(self, node: Structure, path: str, tail: str) -> Part:
        tag = self._either([self._tag(tag, f"{path}.tags[{i}]", "") for i, tag in enumerate(node["tags"])])
        if node["stop_after_first"]:
            some = tag
        else:
            one, more = self._symbol(tag), self._symbol(self._joined([literal(node["separator"]), tag]))
            some = Part(f"{one} ({more})*", regular=False)
        if not node["at_least_one"]:
            some = Part(f"({self._symbol(some)})?", regular=False)
        return self._joined([some, literal(tail)])

    def _refuse_open(self, path: str, tail: str, last: bool) -> None:
        if not tail and not last:
            raise RequestError(
                f"{path}: free text must end the whole or be followed by a fixed text (a const_string, a tag's begin "
                "or end) in the grammar backend llguidance",
                param="structural_tag",
            )

    def _free(self, triggers: Sequence[str], tail: str) -> Part:
        """Text without any trigger, up to the first `tail`."""
        if tail:
            return self._up_to(tail, (*triggers, tail))
        if not triggers:
            return _regular("(?s:.*)")
        anywhere = "|".join(escaped(trigger) for trigger in triggers)
        return Part(f"(/(?s:.*)/ & ~/(?s:.*)({anywhere})(?s:.*)/)", regular=True)

    def _up_to(self, end: str, none_before: Sequence[str]) -> Part:
        """Text that ends with `end`, and in which none of the others ended before."""
        earlier = "|".join(escaped(text) for text in none_before if text)
        return Part(f"(/(?s:.*){escaped(end)}/ & ~/(?s:.*)({earlier})(?s:.+)/)", regular=True)

    # EBNF

    def ebnf(self, rules: Rules) -> Part:
        if not is_recursive(rules):
            return _regular(_Expression(rules).of(Ref("root")))
        prefix = f"e{len(self._lines)}_"
        numbers = {name: f"{prefix}{index}" for index, name in enumerate(rules)}
        characters: dict[str, str] = {}
        for name, body in rules.items():
            self._lines.append(f"{numbers[name]}: {self._by_characters(body, numbers, characters)}")
        return Part(numbers["root"], regular=False)

    def _by_characters(self, node: Node, numbers: Mapping[str, str], characters: dict[str, str]) -> str:
        match node:
            case Literal(text):
                return " ".join(self._character(escaped(char), characters) for char in text) or '""'
            case CharSet():
                return self._character(char_class(node), characters)
            case Ref(name):
                return numbers[name]
            case Seq(parts):
                return " ".join(f"({self._by_characters(p, numbers, characters)})" for p in parts) or '""'
            case Alt(options):
                return " | ".join(f"({self._by_characters(option, numbers, characters)})" for option in options)
            case Repeat(most=0):
                return '""'
            case Repeat(body, least, most):
                return f"({self._by_characters(body, numbers, characters)}){_bounds(least, most)}"

    def _character(self, expression: str, characters: dict[str, str]) -> str:
        if expression not in characters:
            characters[expression] = self._terminal(f"/{expression}/")
        return characters[expression]

    # Parts

    def _joined(self, parts: Sequence[Part]) -> Part:
        """One after the other; neighbours that are regular become one."""
        made: list[Part] = []
        for part in parts:
            if part == EMPTY:
                continue
            if made and made[-1].regular and part.regular:
                made[-1] = Part(f"{made[-1].text} {part.text}", regular=True)
            else:
                made.append(part)
        if not made:
            return EMPTY
        if len(made) == 1:
            return made[0]
        return Part(" ".join(self._symbol(part) for part in made), regular=False)

    def _either(self, parts: Sequence[Part]) -> Part:
        if len(parts) == 1:
            return parts[0]
        regular = [part.text for part in parts if part.regular]
        made = [Part(f"({' | '.join(regular)})", regular=True)] if regular else []
        made += [part for part in parts if not part.regular]
        if len(made) == 1:
            return made[0]
        return Part(f"({' | '.join(self._symbol(part) for part in made)})", regular=False)

    def _symbol(self, part: Part) -> str:
        """A name that stands for the part."""
        if part == EMPTY:
            return '""'
        if part.regular:
            return self._terminal(part.text)
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}: {part.text}")
        return name

    def _terminal(self, expression: str) -> str:
        if len(expression) > MAX_EXPRESSION:
            raise RequestError(f"the grammar has an expression of more than {MAX_EXPRESSION} characters")
        name = f"T{len(self._lines)}"
        self._lines.append(f"{name}: {expression}")
        return name


@dataclass(slots=True)
class _Expression:
    """Rules without recursion as one regular expression."""

    rules: Rules
    length: int = 0

    def of(self, node: Node) -> str:
        made = self._written(node)
        self.length += len(made)
        if self.length > MAX_EXPRESSION * 8 or len(made) > MAX_EXPRESSION:
            raise RequestError("the EBNF grammar is too large once its rules are put into one another", param="ebnf")
        return made

    def _written(self, node: Node) -> str:
        match node:
            case Literal(text):
                return escaped(text)
            case CharSet():
                return char_class(node)
            case Ref(name):
                return f"(?:{self.of(self.rules[name])})"
            case Seq(parts):
                return "".join(self._atom(part) for part in parts)
            case Alt(options):
                return f"(?:{'|'.join(self.of(option) for option in options)})"
            case Repeat(body, least, most):
                return f"(?:{self.of(body)}){_bounds(least, most)}"

    def _atom(self, node: Node) -> str:
        return self.of(node)


def _bounds(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def char_class(node: CharSet) -> str:
    """As an expression; `[^...]` fits line ends too."""
    if not node.ranges:
        return "(?s:.)"
    inside = "".join(f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in node.ranges)
    return f"[{'^' if node.negated else ''}{inside}]"


def escaped(text: str) -> str:
    """An expression that fits just `text`."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):X}}}" for char in text)


def literal(text: str) -> Part:
    return _regular(escaped(text)) if text else EMPTY


def _regular(expression: str) -> Part:
    return Part(f"/{expression}/", regular=True) if expression else EMPTY


EMPTY = Part("", regular=True)
