"""Tool parsers of tag formats: a format makes both the machine that reads calls and the structure that forces them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from core.interfaces.grammar import Structure
from core.interfaces.parsers import ParserStream, Tool, ToolChoice, ToolParser
from core.parsing.settings import hold_of
from core.parsing.tags import TagFormat, TagStream
from core.parsing.typed import ALL, enum_of, resolve, types_of, with_definitions

Node = dict[str, Any]
_MAYBE_SPACE: Node = {"type": "regex", "pattern": "\\n?"}  # the empty text is no constant in every grammar


class TagToolParser(ToolParser):
    """A tool parser that is its `form`."""

    form: ClassVar[TagFormat]

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """See the interface."""
        return TagStream(self.form, tools, hold_of(self.ctx.settings))

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface. What schemas say of the insides of strings (pattern, length) is not held to."""
        return tag_structure(self.form, tools, choice)


def tag_structure(form: TagFormat, tools: Sequence[Tool], choice: ToolChoice) -> Structure:
    """Calls of `tools` in `form`. Parameters stand in the order of the schema, those that are not required or not."""
    calls = [_call(form, tool["function"]) for tool in tools]
    several: Node = {
        "tags": calls,
        "at_least_one": True,
        "stop_after_first": not choice.parallel,
    }
    if form.section is None:
        if choice.mode == "required":
            return {"type": "tags_with_separator", "separator": form.section_gap or "\n", **several}
        return {"type": "triggered_tags", "triggers": [form.open[0]], **several, "at_least_one": False}
    opening, closing = form.section[0] + form.section_gap, form.section_gap + form.section[1]
    inside = {"type": "tags_with_separator", "separator": form.section_gap or "\n", **several}
    section = {"type": "tag", "begin": opening, "content": inside, "end": closing}
    if choice.mode == "required":
        return section
    triggers = {"type": "triggered_tags", "triggers": [form.section[0]], "tags": [section]}
    return {**triggers, "at_least_one": False, "stop_after_first": not choice.parallel}


def _call(form: TagFormat, function: Mapping[str, Any]) -> Node:
    """One tag, from the first of the opening tags to the last of the closing ones."""
    parameters = function.get("parameters")
    root = resolve(parameters, parameters)
    properties = root.get("properties") if isinstance(root, Mapping) else None
    required = root.get("required") if isinstance(root, Mapping) else None
    head = "".join(form.gap + tag for tag in form.open[1:])
    elements: list[Node] = [_constant(head + function["name"] + form.name_close + form.gap)]
    for key, schema in (properties if isinstance(properties, Mapping) else {}).items():
        parameter = _parameter(form, str(key), schema, parameters)
        if key in (required if isinstance(required, list) else ()):
            elements.append(parameter)
        else:
            elements.append({"type": "or", "elements": [parameter, _MAYBE_SPACE]})
    content: Node = {"type": "sequence", "elements": elements} if len(elements) > 1 else elements[0]
    return {"type": "tag", "begin": form.open[0], "content": content, "end": form.gap.join(form.close)}


def _parameter(form: TagFormat, key: str, schema: Any, root: Any) -> Node:
    """A parameter with the gap behind it."""
    closes = {kind: text for text, kind in form.parameter.key_closes}
    types, members = types_of(schema, root), enum_of(resolve(schema, root))
    as_text = types != ALL and "string" in types
    whole = with_definitions(schema, root)
    if "schema" in closes:
        return _text(form, key + closes["schema"], members) if as_text else _json(form, key + closes["schema"], whole)
    ways: list[Node] = []
    if as_text and (members is None or any(isinstance(member, str) for member in members)):
        texts = None if members is None else [member for member in members if isinstance(member, str)]
        ways.append(_text(form, key + closes["string"], texts))
    if types != {"string"}:
        ways.append(_json(form, key + closes["json"], whole))
    return ways[0] if len(ways) == 1 else {"type": "or", "elements": ways}


def _text(form: TagFormat, head: str, members: list[Any] | None) -> Node:
    """A parameter whose value is bare text: one of `members`, or any that does not end itself."""
    tags = form.parameter
    texts = [member if isinstance(member, str) else json.dumps(member) for member in members or ()]
    constants = [_constant(text) for text in texts if text and tags.close not in text]
    if constants:
        choice: Node = {"type": "or", "elements": constants}
        return _tag(_opening(form, head), choice, _closing(form))
    # The text may end in a line break or not, so only the tag itself ends it. What follows is an expression and no
    # constant, lest a grammar take both together for the end.
    gap: Node = {"type": "regex", "pattern": "\\n"} if form.gap else _MAYBE_SPACE
    text = _tag(_opening(form, head), {"type": "any_text"}, tags.close)
    return {"type": "sequence", "elements": [text, gap]}


def _json(form: TagFormat, head: str, schema: Any) -> Node:
    return _tag(_opening(form, head), {"type": "json_schema", "json_schema": schema}, _closing(form))


def _opening(form: TagFormat, head: str) -> str:
    """All before the value. head: key and what closes it."""
    tags = form.parameter
    middle = form.gap + tags.value_open if tags.value_open else ""
    return tags.open + head + middle + ("\n" if tags.trim else "")


def _closing(form: TagFormat) -> str:
    return ("\n" if form.parameter.trim else "") + form.parameter.close + form.gap


def _constant(text: str) -> Node:
    return {"type": "const_string", "value": text}


def _tag(begin: str, content: Node, end: str) -> Node:
    return {"type": "tag", "begin": begin, "content": content, "end": end}
