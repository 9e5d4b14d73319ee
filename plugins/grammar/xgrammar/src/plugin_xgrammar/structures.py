"""Structures and EBNF in the library's formats, with what is in them checked and rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.interfaces.grammar import Structure
from core.parsing.ebnf import Alt, CharSet, Literal, Node, Ref, Repeat, Rules, Seq


class StructureRewriter:
    """A structure as the library's `format`, which is nearly the same."""

    def __init__(
        self,
        schema: Callable[[Any, str], dict[str, Any]],
        expression: Callable[[str, str], str],
        ebnf: Callable[[str], str],
    ) -> None:
        """schema: (schema, path) -> node of the library; expression: (pattern, path) -> pattern; ebnf: text -> text.
        All raise RequestError."""
        self._schema = schema
        self._expression = expression
        self._ebnf = ebnf

    def node(self, node: Structure, path: str = "$") -> dict[str, Any]:
        match node["type"]:
            case "json_schema":
                return self._schema(node["json_schema"], f"{path}.json_schema")
            case "regex":
                return {"type": "regex", "pattern": self._expression(node["pattern"], f"{path}.pattern")}
            case "grammar":
                return {"type": "grammar", "grammar": self._ebnf(node["grammar"])}
            case "sequence" | "or":
                elements = [self.node(part, f"{path}.elements[{i}]") for i, part in enumerate(node["elements"])]
                return {**node, "elements": elements}
            case "tag":
                return {**node, "content": self.node(node["content"], f"{path}.content")}
            case "triggered_tags" | "tags_with_separator":
                tags = [self.node(tag, f"{path}.tags[{i}]") for i, tag in enumerate(node["tags"])]
                return {**node, "tags": tags}
            case _:
                return dict(node)


def ebnf_text(rules: Rules) -> str:
    """Rules in the library's spelling, under names of our own."""
    names = {name: "root" if name == "root" else f"r{i}" for i, name in enumerate(rules)}
    return "\n".join(f"{names[name]} ::= {_written(body, names)}" for name, body in rules.items())


def _written(node: Node, names: Mapping[str, str]) -> str:
    match node:
        case Literal(text):
            return f'"{escaped(text)}"'
        case CharSet(ranges, negated):
            inside = "".join(f"{_code(low)}-{_code(high)}" for low, high in ranges)
            return f"[{'^' if negated else ''}{inside}]" if ranges else f"[{_code(1)}-{_code(0x10FFFF)}]"
        case Ref(name):
            return names[name]
        case Seq(parts):
            return " ".join(f"({_written(part, names)})" for part in parts) or '""'
        case Alt(options):
            return " | ".join(f"({_written(option, names)})" for option in options)
        case Repeat(body, least, most):
            mark = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
            bounds = f"{{{least}}}" if most == least else f"{{{least},{'' if most is None else most}}}"
            return f"({_written(body, names)}){mark or bounds}"


def escaped(text: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else _code(ord(char)) for char in text)


def _code(point: int) -> str:
    """Of fixed length, as the library reads on after `\\x`."""
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
