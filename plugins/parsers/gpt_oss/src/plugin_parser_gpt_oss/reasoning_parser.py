"""Reasoning of gpt-oss: the analysis channel."""

from __future__ import annotations

from core.interfaces.parsers import ParsedDelta, ParserStream, ReasoningParser
from core.parsing.scanner import Scanner
from plugin_parser_gpt_oss.markers import CHANNEL, END, MESSAGE, RETURN, START, TO

_ANALYSIS = tuple(f"{start}{CHANNEL}analysis{MESSAGE}" for start in ("", START))
_ANSWER = tuple(f"{start}{CHANNEL}{channel}{MESSAGE}" for start in ("", START) for channel in ("final", "commentary"))
_ENDS = (END, RETURN)
_CALLS = (*(f"{CHANNEL}{channel} {TO}" for channel in ("analysis", "commentary")), f"{START} {TO}")
MARKERS = (*_ANALYSIS, *_ANSWER, *_ENDS)
"""Texts that are taken out."""

_PIECE = 4096  # characters looked at together: what is behind a marker is copied when one is found


class GptOssReasoningParser(ReasoningParser):
    """The analysis channel is reasoning. The final channel, and commentary to nobody, are content without their
    headers. Calls are content with their headers, for the tool parser."""

    end_marker = END
    always_reasons = True

    def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
        """See the interface."""
        return _Stream(prompt_opens_reasoning)


class _Stream(ParserStream):
    """`_start` holds the beginning of the text while it may turn out to be a recipient; it is None after that."""

    def __init__(self, reasons: bool) -> None:
        self._reasons = reasons
        self._in_call = False  # its end belongs to the tool parser
        self._in_header = False  # of a call; so does its header
        self._scanner = Scanner((*MARKERS, *_CALLS, MESSAGE))
        self._start: str | None = ""

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        out = ParsedDelta()
        if self._start is not None:
            self._start += delta
            head = self._start.lstrip()
            if len(head) < len(TO) and TO.startswith(head) and len(self._start) - len(head) <= 1:
                return out
            delta, self._start = self._start, None
            if head.startswith(TO):
                self._reasons, self._in_call, self._in_header = False, True, True
        for at in range(0, len(delta), _PIECE):
            self._take(delta[at : at + _PIECE], out)
        return out

    def finish(self) -> ParsedDelta:
        """See the interface."""
        out = ParsedDelta()
        start, self._start = self._start, None
        self._take(start or "", out)
        self._give(self._scanner.flush(), out)
        return out

    def _take(self, text: str, out: ParsedDelta) -> None:
        if not self._scanner.held and "<" not in text:  # markers begin with it
            self._give(text, out)
            return
        while text:
            safe, found, text = self._scanner.feed(text)
            self._give(safe, out)
            if found is None:
                return
            if found == MESSAGE or (self._in_header and not found.startswith(START)):
                self._in_header = False
                self._give(found, out)
                continue
            in_call, self._in_call = self._in_call, found in _CALLS
            self._in_header = self._in_call
            self._reasons = found in _ANALYSIS
            if self._in_call or (in_call and found in _ENDS):
                self._give(found, out)

    def _give(self, text: str, out: ParsedDelta) -> None:
        if self._reasons:
            out.reasoning += text
        else:
            out.content += text
