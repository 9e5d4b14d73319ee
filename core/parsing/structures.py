"""Structure trees of tool calls (`core.interfaces.grammar.Structure`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from core.interfaces.grammar import Structure
from core.interfaces.parsers import Tool, ToolChoice

NAME: Final = "{NAME}"
"""Where the tool's name stands in a `Writing`'s `begin`."""
INDEX: Final = "{INDEX}"
"""Where the number of a call stands, any number."""


@dataclass(frozen=True, slots=True)
class Writing:
    """One way of writing a format's calls: `section_begin`, calls with `separator` between them, `section_end`.

    begin: what stands before a call's arguments, with `NAME` and perhaps `INDEX` after it. end: what stands behind.
    quoted: the name stands inside a JSON string. Without a section, both its texts are empty.
    """

    begin: str
    end: str = ""
    separator: str = ""
    section_begin: str = ""
    section_end: str = ""
    quoted: bool = False


def tag(begin: str, content: Structure, end: str) -> dict[str, Any]:
    """`content` between two texts."""
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def const(text: str) -> dict[str, Any]:
    """Just this text."""
    return {"type": "const_string", "value": text}


def schema(value: Any) -> dict[str, Any]:
    """JSON that follows a schema."""
    return {"type": "json_schema", "json_schema": value}


def name_of(tool: Tool) -> str:
    """The tool's name."""
    return str(tool["function"]["name"])


def parameters_of(tool: Tool) -> Mapping[str, Any]:
    """The schema of the tool's arguments; any object where it states none."""
    stated = tool["function"].get("parameters")
    return stated if isinstance(stated, Mapping) and stated else {"type": "object"}


def calls_structure(
    tags: Sequence[Structure], choice: ToolChoice, triggers: Sequence[str], separator: str = ""
) -> Structure:
    """Calls, each of which is one of `tags`, with nothing around all of them.

    "required": nothing but calls. "auto": any text; where one of `triggers` (beginnings of the tags' `begin`) comes, a
    call follows; `separator` then plays no part.
    """
    if choice.mode == "required":
        return _only(tags, choice, separator)
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": list(tags),
        "at_least_one": False,
        "stop_after_first": not choice.parallel,
    }


def section_structure(
    begin: str, tags: Sequence[Structure], end: str, choice: ToolChoice, separator: str = ""
) -> Structure:
    """Calls between two texts that stand around all of them; with "auto", any text around that."""
    section = tag(begin, _only(tags, choice, separator), end)
    if choice.mode == "required":
        return section
    return calls_structure([section], ToolChoice("auto", parallel=choice.parallel), [begin])


def written_structure(writing: Writing, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
    """The structure of calls of `tools`, written as `writing` says; None without tools."""
    if not tools:
        return None
    tags = written_tags(writing, tools)
    if writing.section_begin:
        return section_structure(writing.section_begin, tags, writing.section_end, choice, writing.separator)
    trigger = writing.begin.partition(NAME)[0]
    return calls_structure(tags, choice, [trigger], writing.separator)


def written_tags(writing: Writing, tools: Sequence[Tool]) -> list[Structure]:
    """One call of each of `tools`, without what stands around all calls."""
    return [_call(writing, tool) for tool in tools]


def _call(writing: Writing, tool: Tool) -> Structure:
    name = name_of(tool)
    if writing.quoted:
        name = json.dumps(name, ensure_ascii=False)[1:-1]
    begin, numbered, rest = writing.begin.replace(NAME, name).partition(INDEX)
    arguments: Structure = schema(parameters_of(tool))
    if numbered:
        number = {"type": "regex", "pattern": "[0-9]+"}
        arguments = {"type": "sequence", "elements": [number, const(rest), arguments]}
    return tag(begin, arguments, writing.end)


def _only(tags: Sequence[Structure], choice: ToolChoice, separator: str) -> dict[str, Any]:
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not choice.parallel,
    }
