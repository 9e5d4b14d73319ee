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
    tags = form.parameter
    types, members = types_of(schema, root), enum_of(resolve(schema, root))
    as_text = types != ALL and "string" in types
    wanted = ("string", "schema") if as_text else ("json", "schema")
    key_close = next(text for text, kind in tags.key_closes if kind in wanted)
    line = "\n" if tags.trim else ""
    begin = tags.open + key + key_close + (form.gap + tags.value_open if tags.value_open else "") + line
    if as_text and members is not None:
        texts = [member if isinstance(member, str) else json.dumps(member) for member in members]
        value: Node = {"type": "or", "elements": [_constant(text) for text in texts if text and tags.close not in text]}
        if value["elements"]:
            return _tag(begin, value, line + tags.close + form.gap)
    if as_text:
        # White space behind the tag may be anything, but nothing that ends the value early can stand before it.
        text = {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": tags.close}
        return {"type": "sequence", "elements": [text, _constant(form.gap)]} if form.gap else text
    return _tag(begin, {"type": "json_schema", "json_schema": with_definitions(schema, root)},
                line + tags.close + form.gap)  # fmt: skip


def _constant(text: str) -> Node:
    return {"type": "const_string", "value": text}


def _tag(begin: str, content: Node, end: str) -> Node:
    return {"type": "tag", "begin": begin, "content": content, "end": end}
