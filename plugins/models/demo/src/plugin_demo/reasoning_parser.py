"""Reasoning inside <think> … </think> at the beginning of an answer."""

from __future__ import annotations

from core.interfaces.parsers import ParsedDelta, ParserStream, ReasoningParser
from plugin_demo.markers import held_back, trailing_space

OPEN, CLOSE = "<think>", "</think>"


class DemoReasoningParser(ReasoningParser):
    """White space next to the markers belongs to the format: it is in neither the reasoning nor the content."""

    end_marker = CLOSE

    def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
        """See the interface."""
        return _ReasoningStream(prompt_opens_reasoning)


class _ReasoningStream(ParserStream):
    """States: before the opening marker, inside (first without leading white space), after, plain content.

    `_buffer` holds what cannot be decided yet; it never contains a whole marker.
    """

    def __init__(self, inside: bool) -> None:
        self._state = "inside" if inside else "before"
        self._started = False  # something of this part has been given out
        self._buffer = ""

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        self._buffer += delta
        out = ParsedDelta()
        while self._advance(out):
            pass
        return out

    def finish(self) -> ParsedDelta:
        """Reasoning that was never closed stays reasoning; its closing white space goes."""
        rest, self._buffer = self._buffer, ""
        if self._state == "inside":
            return ParsedDelta(reasoning=rest.rstrip() if self._started else rest.strip())
        if self._state == "after" and not rest.strip():
            return ParsedDelta()
        return ParsedDelta(content=rest)

    def _advance(self, out: ParsedDelta) -> bool:
        """One transition on the buffer; whether there may be another."""
        if self._state == "before":
            text = self._buffer.lstrip()
            if text.startswith(OPEN):
                self._state, self._buffer = "inside", text[len(OPEN) :]
                return True
            if OPEN.startswith(text):
                return False  # white space or a part of the marker
            self._state = "plain"
            return True
        if self._state == "inside":
            reasoning, closed, behind = self._buffer.partition(CLOSE)
            if not self._started:
                reasoning = reasoning.lstrip()
            if closed:
                out.reasoning += reasoning.rstrip()
                self._state, self._buffer = "after", behind
                return True
            wait = held_back(reasoning, CLOSE)
            wait += trailing_space(reasoning[: len(reasoning) - wait])
            given = reasoning[: len(reasoning) - wait]
            out.reasoning += given
            self._buffer = reasoning[len(given) :]
            self._started = self._started or bool(given)
            return False
        if self._state == "after":
            self._buffer = self._buffer.lstrip()
            if not self._buffer:
                return False
            self._state = "plain"
            return True
        out.content += self._buffer
        self._buffer = ""
        return False
