"""Tool calls that are forced: which tools a request's tool_choice leaves, and the grammar that holds the answer to it.

The model's own format is used where its parser knows the structure of it. Where not, calls are forced as plain JSON,
`[{"name": ..., "arguments": {...}}, ...]`, or one such object if there may be one call only, and read back by
`JsonCalls`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.frontend.structured import Named, as_structure, structure_grammar
from core.interfaces.errors import RequestError
from core.interfaces.grammar import Structure
from core.interfaces.params import GrammarParams
from core.interfaces.parsers import ParsedDelta, ParserStream, Tool, ToolCallDelta, ToolChoice, ToolParser

NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class AskedChoice:
    """What tool_choice came to. offered: tools that the prompt shows. callable: (index in the request, tool) of those
    that may be called. single: one call and no more, because a function was named."""

    mode: Literal["none", "auto", "required"]
    offered: tuple[Tool, ...]
    callable: tuple[tuple[int, Tool], ...]
    single: bool = False

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        return tuple(tool for _, tool in self.callable)


@dataclass(frozen=True, slots=True)
class Forced:
    """grammar: what the answer must fit, None for any text. optional: an answer without the grammar is an answer too,
    only less certain."""

    grammar: GrammarParams | None
    optional: bool = False


def read_choice(choice: Any, tools: Sequence[Tool]) -> AskedChoice:
    """tool_choice: None, "auto", "none", "required", a named function, or allowed tools. Raises RequestError."""
    everything = tuple(enumerate(tools))
    if choice == "none":
        return AskedChoice("none", (), ())
    if choice is None or choice == "auto":
        return AskedChoice("auto", tuple(tools), everything)
    if choice == "required":
        return _required(tools, everything)
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        named = choice.get("function")
        name = named.get("name") if isinstance(named, Mapping) else choice.get("name")
        return replace(_required(tools, _found([name], tools, "tool_choice.function.name")), single=True)
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        listed = inner.get("tools") if isinstance(inner, Mapping) else None
        mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
        if not isinstance(listed, Sequence) or not listed or mode not in ("auto", "required"):
            raise RequestError(
                'tool_choice.allowed_tools must have mode "auto" or "required" and a list of tools',
                param="tool_choice.allowed_tools",
            )
        allowed = _found([_name(tool) for tool in listed], tools, "tool_choice.allowed_tools.tools")
        made = _required(tools, allowed)
        return made if mode == "required" else replace(made, mode="auto")
    raise RequestError(
        f"tool_choice is {choice!r}",
        param="tool_choice",
        code="unsupported_value",
        hint='use "auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
    )


def reader(choice: AskedChoice, parallel: bool, parser: ToolParser | None) -> ToolParser | None:
    """What reads the calls of an answer."""
    if choice.mode != "required" or _forcing(parser, choice, parallel) is not None:
        return parser
    return JsonCalls()


def force(choice: AskedChoice, parallel: bool, parser: ToolParser | None, grammar: GrammarParams | None) -> Forced:
    """Put tool_choice and what the text must fit otherwise together. parser: `reader`'s. Raises RequestError for what
    excludes each other. With tools that are only offered, an answer is either a text that fits `grammar`, or calls."""
    tools = choice.tools
    if choice.mode == "required":
        if grammar is not None:
            raise RequestError(
                f"{grammar.param} asks for a text, and tool_choice forces tool calls",
                param=grammar.param or "tool_choice",
                hint='leave one out, or use tool_choice "auto"',
            )
        structure = _forcing(parser, choice, parallel)
        return Forced(_grammar(structure, choice))
    if not tools or parser is None:
        return Forced(grammar)
    if grammar is not None:
        structure = _forcing(parser, choice, parallel)
        if structure is None:
            raise RequestError(
                f"{grammar.param} and tools cannot be given together with this model's tool-call parser",
                param=grammar.param or "tools",
                hint='use tool_choice "none" or "required", or leave one of them out',
            )
        either = {"type": "or", "elements": [as_structure(grammar), structure]}
        return Forced(_grammar(either, choice, grammar))
    if any(tool["function"].get("strict") is True for tool in tools):
        loose = tuple(tool if tool["function"].get("strict") is True else _loose(tool) for tool in tools)
        structure = _structure(parser, loose, ToolChoice("auto", parallel))
        if structure is not None:
            return Forced(_grammar(structure, choice), optional=True)
    return Forced(None)


def plain_structure(tools: Sequence[Tool], parallel: bool) -> Structure:
    """Calls as plain JSON. Each schema stays a document of its own, as `$ref` in it counts from its root."""
    tags = [
        {
            "type": "tag",
            "begin": f'{{"name": {json.dumps(tool["function"]["name"], ensure_ascii=False)}, "arguments": ',
            "content": {"type": "json_schema", "json_schema": tool["function"].get("parameters") or NO_ARGUMENTS},
            "end": "}",
        }
        for tool in tools
    ]
    calls = {
        "type": "tags_with_separator", "tags": tags, "separator": ", ",
        "at_least_one": True, "stop_after_first": not parallel,
    }  # fmt: skip
    if not parallel:
        return calls
    return {"type": "sequence", "elements": [_text("["), calls, _text("]")]}


class JsonCalls(ToolParser):
    """Reads what `plain_structure` forces. Text of another form is content."""

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """See the interface."""
        return _JsonCallsStream()

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface."""
        return plain_structure(tools, choice.parallel) if choice.mode == "required" else None


_HEAD = re.compile(r'\s*[\[,]?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)
_TAIL = re.compile(r"\s*\}")
_END = re.compile(r"\s*\]?\s*\Z")
_TOKEN = re.compile(r'["\\{}\[\]]')


class _JsonCallsStream(ParserStream):
    """States: between calls; in the arguments of one; after them; plain content, once something does not fit.

    `_depth`, `_quoted` and `_escaped` say where in the arguments' JSON the text is.
    """

    def __init__(self) -> None:
        self._state = "between"
        self._buffer = ""
        self._num_calls = 0
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        self._buffer += delta
        out = ParsedDelta()
        while self._advance(out):
            pass
        return out

    def finish(self) -> ParsedDelta:
        """What was no call is content; the end of a list is nothing."""
        rest, self._buffer = self._buffer, ""
        return ParsedDelta() if self._num_calls and _END.match(rest) else ParsedDelta(content=rest)

    def _advance(self, out: ParsedDelta) -> bool:
        if self._state == "between":
            found = _HEAD.match(self._buffer)
            if found is None:
                return False
            out.tool_calls.append(ToolCallDelta(self._num_calls, name=json.loads(found[1], strict=False)))
            self._num_calls += 1
            self._buffer = self._buffer[found.end() :]
            self._state, self._depth, self._quoted = "inside", 0, False
            return True
        if self._state == "inside":
            end = self._value_end()
            arguments = self._buffer if end is None else self._buffer[:end]
            if arguments:
                out.tool_calls.append(ToolCallDelta(self._num_calls - 1, arguments=arguments))
            self._buffer = self._buffer[len(arguments) :]
            if end is not None:
                self._state = "after"
            return end is not None
        found = _TAIL.match(self._buffer)
        if found is None:
            return False
        self._buffer, self._state = self._buffer[found.end() :], "between"
        return True

    def _value_end(self) -> int | None:
        """Where the arguments' object ends in the buffer, all of which is new; None if further on."""
        text = self._buffer
        at = 1 if self._escaped and text else 0
        self._escaped = self._escaped and not text
        while (found := _TOKEN.search(text, at)) is not None:
            at = found.end()
            character = found[0]
            if character == "\\":
                self._escaped = at == len(text)
                at += 1
            elif character == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if character in "{[" else -1
                if self._depth <= 0:
                    return at
        return None


def _forcing(parser: ToolParser | None, choice: AskedChoice, parallel: bool) -> Structure | None:
    return _structure(parser, choice.tools, ToolChoice("required", parallel and not choice.single))


def _structure(parser: ToolParser | None, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
    return parser.structure(tools, choice) if parser is not None else None


def _grammar(structure: Any, choice: AskedChoice, text: GrammarParams | None = None) -> GrammarParams:
    named = [
        Named(tool["function"].get("parameters") or NO_ARGUMENTS, f"tools[{index}].function.parameters")
        for index, tool in choice.callable
    ]
    if text is not None and text.kind == "json_schema":
        named.insert(0, Named(json.loads(text.text), text.param))
    return structure_grammar(structure, text.param if text is not None else "tools", named)


def _required(tools: Sequence[Tool], found: tuple[tuple[int, Tool], ...]) -> AskedChoice:
    if not tools:
        raise RequestError("tool_choice forces a call, and there are no tools", param="tool_choice", hint="give tools")
    return AskedChoice("required", tuple(tools), found)


def _found(names: Sequence[Any], tools: Sequence[Tool], where: str) -> tuple[tuple[int, Tool], ...]:
    by_name = {tool["function"]["name"]: (index, tool) for index, tool in enumerate(tools)}
    for name in names:
        if not isinstance(name, str) or name not in by_name:
            raise RequestError(
                f"{where} is {name!r}, which is none of the tools",
                param=where,
                hint=f"there are {', '.join(by_name) or 'none'}",
            )
    return tuple(by_name[name] for name in dict.fromkeys(names))


def _name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if isinstance(function, Mapping):
        return function.get("name")
    return tool.get("name") if isinstance(tool, Mapping) else None


def _loose(tool: Tool) -> Tool:
    return {**tool, "function": {**tool["function"], "parameters": {"type": "object"}}}


def _text(value: str) -> dict[str, str]:
    return {"type": "const_string", "value": value}
