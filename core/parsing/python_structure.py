"""Tool parsers of Python formats: a format makes the machine that reads calls and the structure that forces them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from core.interfaces.grammar import Structure
from core.interfaces.parsers import ParserStream, Tool, ToolChoice, ToolParser
from core.parsing.python_calls import PythonCallStream, PythonFormat
from core.parsing.settings import hold_of
from core.parsing.typed import resolve, with_definitions

Node = dict[str, Any]
_MAYBE_SPACE: Node = {"type": "regex", "pattern": " ?"}


class PythonToolParser(ToolParser):
    """A tool parser that is its `form`."""

    form: ClassVar[PythonFormat]

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """See the interface."""
        return PythonCallStream(self.form, hold_of(self.ctx.settings))

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface. With "auto", a list at the very beginning of a text that no marker opens is not held to
        the form."""
        return python_structure(self.form, tools, choice)


def python_structure(form: PythonFormat, tools: Sequence[Tool], choice: ToolChoice) -> Structure:
    """Lists of calls of `tools`. Values are JSON, which the machine reads as well as Python's literals; arguments that
    are required stand first."""
    calls = [_call(tool["function"]) for tool in tools]
    several: Node = {
        "type": "tags_with_separator",
        "tags": calls,
        "separator": ", ",
        "at_least_one": True,
        "stop_after_first": not choice.parallel,
    }
    whole = {"type": "tag", "begin": f"{form.opening}[", "content": several, "end": f"]{form.closing}"}
    if choice.mode == "required":
        return whole
    if form.opening:
        triggers, tags = [form.opening], [whole]
    else:
        triggers = [f"\n[{call['begin']}" for call in calls]
        more = [{"type": "sequence", "elements": [_constant("), "), {**several, "stop_after_first": False}]}]
        rest: Node = {"type": "or", "elements": [_constant(")"), *(more if choice.parallel else ())]}
        tags = [
            {
                "type": "tag",
                "begin": trigger,
                "content": {"type": "sequence", "elements": [call["content"], rest]},
                "end": f"]{form.closing}",
            }
            for trigger, call in zip(triggers, calls, strict=True)
        ]
    return {
        "type": "triggered_tags",
        "triggers": triggers,
        "tags": tags,
        "at_least_one": False,
        "stop_after_first": not choice.parallel,
    }


def _call(function: Mapping[str, Any]) -> Node:
    parameters = function.get("parameters")
    root = resolve(parameters, parameters)
    properties = root.get("properties") if isinstance(root, Mapping) else None
    stated = root.get("required") if isinstance(root, Mapping) else None
    required = stated if isinstance(stated, list) else []
    arguments = {
        str(key): [
            _constant(f"{key}="),
            {"type": "json_schema", "json_schema": with_definitions(schema, parameters)},
        ]
        for key, schema in (properties if isinstance(properties, Mapping) else {}).items()
        if str(key).isidentifier()
    }
    needed = [arguments[key] for key in arguments if key in required]
    others = [arguments[key] for key in arguments if key not in required]
    return {
        "type": "tag",
        "begin": f"{function['name']}(",
        "content": _sequence(_arguments(needed, others)),
        "end": ")",
    }


def _arguments(needed: Sequence[Sequence[Node]], others: Sequence[Sequence[Node]]) -> list[Node]:
    if needed:
        nodes = list(needed[0])
        for argument in needed[1:]:
            nodes += _behind(argument)
        return nodes + [_perhaps(_behind(argument)) for argument in others]
    # Whichever of the others comes first has no comma before it.
    firsts: list[Node] = [
        _sequence([*argument, *(_perhaps(_behind(later)) for later in others[place + 1 :])])
        for place, argument in enumerate(others)
    ]
    return [{"type": "or", "elements": [*firsts, _MAYBE_SPACE]}] if firsts else [_MAYBE_SPACE]


def _behind(argument: Sequence[Node]) -> list[Node]:
    """An argument behind another: with the comma."""
    return [_constant(f", {argument[0]['value']}"), *argument[1:]]


def _perhaps(nodes: list[Node]) -> Node:
    return {"type": "or", "elements": [_sequence(nodes), _MAYBE_SPACE]}


def _sequence(nodes: list[Node]) -> Node:
    return {"type": "sequence", "elements": nodes} if len(nodes) > 1 else nodes[0]


def _constant(text: str) -> Node:
    return {"type": "const_string", "value": text}
