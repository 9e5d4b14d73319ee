"""A push machine: text comes in pieces of any size, what is certain goes out.

Two rules make it right for every cut. Nothing is decided on the end of the text so far if more text could change it:
an end that may be the beginning of a tag is held back. And a call is given out when it is complete and well formed,
not before: what was given out cannot be taken back, and what turns out to be no call must come back as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from core.interfaces.parsers import ParsedDelta, ParserStream, Tool, ToolCallDelta, ToolParser
from example_tool_parser.values import schemas_of, to_json

OPEN, CLOSE = "<function=", "</function>"
_HEAD = re.compile(r"([A-Za-z0-9_.:-]{1,128})>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]{1,128})>(.*?)</parameter>", re.DOTALL)


class FunctionTagsParser(ToolParser):
    """One object serves all requests, so it keeps nothing of a text; the stream does."""

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        return _Stream(tools)


class _Stream(ParserStream):
    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools
        self._held = ""  # not decided yet: the beginning of a tag, or a call that is not closed
        self._num_calls = 0

    def feed(self, delta: str) -> ParsedDelta:
        self._held += delta
        out = ParsedDelta()
        while True:
            start = self._held.find(OPEN)
            if start < 0:
                keep = _beginning(self._held, OPEN)
                out.content += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return out
            out.content += self._held[:start]
            self._held = self._held[start:]
            end = self._held.find(CLOSE)
            if end < 0:
                return out
            call, self._held = self._held[: end + len(CLOSE)], self._held[end + len(CLOSE) :]
            self._take(call, out)

    def finish(self) -> ParsedDelta:
        """The text is over, so nothing that was held back can become a call any more."""
        out, self._held = ParsedDelta(content=self._held), ""
        return out

    def _take(self, text: str, out: ParsedDelta) -> None:
        """`text` from the opening tag to the closing one: a call, or content if it is not well formed."""
        call = parse_call(text, self._tools)
        if call is None:
            out.content += text
            return
        name, arguments = call
        out.tool_calls.append(ToolCallDelta(self._num_calls, name=name, arguments=arguments))
        self._num_calls += 1


def parse_call(text: str, tools: Sequence[Tool]) -> tuple[str, str] | None:
    """(name, arguments as JSON), or None if something else than parameters stands between the tags."""
    head = _HEAD.match(text, len(OPEN))
    if head is None:
        return None
    schemas = schemas_of(tools, head[1])
    arguments = {}
    at, end = head.end(), len(text) - len(CLOSE)
    while (found := _PARAMETER.match(text, at, end)) is not None:
        if found[1] in arguments:
            return None
        arguments[found[1]] = to_json(found[2], schemas.get(found[1]))
        at = found.end()
    if text[at:end].strip():
        return None
    return head[1], json.dumps(arguments, ensure_ascii=False)


def _beginning(text: str, marker: str) -> int:
    """How many characters at the end of `text` could be the beginning of `marker`."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
