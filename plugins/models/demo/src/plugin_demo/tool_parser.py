"""Tool calls as JSON objects inside <tool_call> … </tool_call>."""

from __future__ import annotations

import json
from collections.abc import Sequence

from core.interfaces.grammar import Structure
from core.interfaces.parsers import ParsedDelta, ParserStream, Tool, ToolCallDelta, ToolChoice, ToolParser
from plugin_demo.markers import held_back, trailing_space

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_SPACE = " \t\r\n"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class DemoToolParser(ToolParser):
    """A call is given out when its closing marker has come: only then is it known to be well formed.

    What is no call comes back as content, markers included. White space between calls, and after the last one,
    belongs to the format and is dropped; before content it is kept.
    """

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """See the interface. Undeclared names are passed on: what to do with them is the core's policy."""
        return _ToolStream()

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface. Calls stand one a line, as the chat template writes them."""
        tags = [
            {
                "type": "tag",
                "begin": f'{OPEN}\n{{"name": {json.dumps(tool["function"]["name"])}, "arguments": ',
                "content": {"type": "json_schema", "json_schema": tool["function"].get("parameters") or _NO_ARGUMENTS},
                "end": f"}}\n{CLOSE}",
            }
            for tool in tools
        ]
        if choice.mode == "auto":
            return {
                "type": "triggered_tags", "triggers": [OPEN], "tags": tags,
                "at_least_one": False, "stop_after_first": not choice.parallel,
            }  # fmt: skip
        return {
            "type": "tags_with_separator", "tags": tags, "separator": "\n",
            "at_least_one": True, "stop_after_first": not choice.parallel,
        }  # fmt: skip


class _ToolStream(ParserStream):
    def __init__(self) -> None:
        self._inside = False
        self._buffer = ""  # undecided text; inside a call: all of it, without the opening marker
        self._space = ""  # white space before `_buffer` that only counts if content follows
        self._num_calls = 0

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        self._buffer += delta
        out = ParsedDelta()
        while self._advance(out):
            pass
        return out

    def finish(self) -> ParsedDelta:
        """A call that was not closed counts if its JSON is whole (the marker was a stop string, say)."""
        out = ParsedDelta()
        rest, self._buffer = self._buffer, ""
        if self._inside:
            if not self._call(rest, out):
                self._content(OPEN + rest, out)
        else:
            self._content(rest, out)
        if self._space and not self._num_calls:
            out.content += self._space
        self._space = ""
        return out

    def _advance(self, out: ParsedDelta) -> bool:
        """One transition on the buffer; whether there may be another."""
        if self._inside:
            body, closed, behind = self._buffer.partition(CLOSE)
            if not closed:
                return False
            self._inside, self._buffer = False, behind
            if not self._call(body, out):
                self._content(OPEN + body + CLOSE, out)
            return True
        before, opened, behind = self._buffer.partition(OPEN)
        if opened:
            self._content(before, out)
            self._inside, self._buffer = True, behind
            return True
        wait = held_back(before, OPEN)
        self._content(before[: len(before) - wait], out)
        self._buffer = before[len(before) - wait :]
        return False

    def _content(self, text: str, out: ParsedDelta) -> None:
        """Give out text, but keep the white space at its end until it is clear what follows."""
        text = self._space + text
        end = len(text) - trailing_space(text)
        out.content += text[:end]
        self._space = text[end:]

    def _call(self, body: str, out: ParsedDelta) -> bool:
        """Give out `body` as a call; False if it is none."""
        call = parse_call(body)
        if call is None:
            return False
        out.tool_calls.append(ToolCallDelta(self._num_calls, name=call[0], arguments=call[1]))
        self._num_calls += 1
        self._space = ""
        return True


def parse_call(body: str) -> tuple[str, str] | None:
    """(name, arguments as the JSON text that was written) of {"name": …, "arguments": {…}}, or None.

    The text of the arguments is cut out rather than written anew, so numbers and repeated keys stay as they are.
    """
    try:
        members = _members(body)
        name, (value, text) = members["name"][0], members.get("arguments", ({}, "{}"))
        if isinstance(value, str):  # arguments as a string that holds JSON
            text, value = value, json.loads(value)
    except (ValueError, KeyError, RecursionError):
        return None
    well_formed = isinstance(value, dict) and members.keys() <= {"name", "arguments"}
    return (name, text) if well_formed and isinstance(name, str) and name else None


def _members(body: str) -> dict[str, tuple[object, str]]:
    """The members of a JSON object: key -> (value, its text). Raises ValueError."""
    decoder = json.JSONDecoder()
    text = body.strip(_SPACE)
    if not isinstance(json.loads(text), dict):
        raise ValueError("not an object")
    members: dict[str, tuple[object, str]] = {}
    at = _skip(text, 1)
    while text[at] != "}":  # the text is valid JSON, so this walk cannot leave it
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        value, end = decoder.raw_decode(text, at)
        if key in members:
            raise ValueError(f"{key!r} comes twice")
        members[key] = (value, text[at:end])
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at
