"""The smallest correct parsers: <think>…</think> and <tool_call>{json}</tool_call>."""

from __future__ import annotations

import json
from collections.abc import Sequence

from core.interfaces.parsers import (
    ParsedDelta,
    ParserStream,
    ReasoningParser,
    Tool,
    ToolCallDelta,
    ToolParser,
)
from core.parsing.scanner import Scanner


class _Between(ParserStream):
    """Splits text at an opening and a closing marker; subclasses take what is inside."""

    def __init__(self, opening: str, closing: str, inside: bool = False) -> None:
        self._markers = (opening, closing)
        self._inside = inside
        self._scanner = Scanner([self._markers[inside]])

    def feed(self, delta: str) -> ParsedDelta:
        parsed = ParsedDelta()
        rest = delta
        while True:
            safe, found, rest = self._scanner.feed(rest)
            self.take(safe, parsed)
            if found is None:
                return parsed
            if self._inside:
                self.close(parsed)
            self._inside = not self._inside
            self._scanner = Scanner([self._markers[self._inside]])

    def finish(self) -> ParsedDelta:
        parsed = ParsedDelta()
        self.take(self._scanner.flush(), parsed)
        if self._inside:
            self.close(parsed)
        return parsed

    def take(self, text: str, parsed: ParsedDelta) -> None:
        raise NotImplementedError

    def close(self, parsed: ParsedDelta) -> None:
        pass


class _Think(_Between):
    def take(self, text: str, parsed: ParsedDelta) -> None:
        if self._inside:
            parsed.reasoning += text
        else:
            parsed.content += text


class _Calls(_Between):
    def __init__(self) -> None:
        super().__init__("<tool_call>", "</tool_call>")
        self._body = ""
        self._count = 0

    def take(self, text: str, parsed: ParsedDelta) -> None:
        if self._inside:
            self._body += text
        else:
            parsed.content += text

    def close(self, parsed: ParsedDelta) -> None:
        body, self._body = self._body, ""
        try:
            call = json.loads(body)
            name, arguments = call["name"], json.dumps(call["arguments"])
        except (ValueError, LookupError, TypeError):
            parsed.content += f"<tool_call>{body}</tool_call>"
            return
        parsed.tool_calls.append(ToolCallDelta(self._count, name))
        parsed.tool_calls.append(ToolCallDelta(self._count, arguments=arguments))
        self._count += 1


class ThinkParser(ReasoningParser):
    def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
        return _Think("<think>", "</think>", prompt_opens_reasoning)


class CallParser(ToolParser):
    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        return _Calls()
