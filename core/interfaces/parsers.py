"""Parsers of generated text: reasoning and tool calls. Pure push machines, no I/O.

The law that holds for both: for every text and every way of cutting it into deltas, the concatenated output
of `feed` and `finish` is the same, and non-streaming is the stream fed once. Nothing of the text is lost.
Policy (undeclared tools, call ids, schema checks) is core's and applied after the parser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.interfaces.context import PluginContext

Tool = Mapping[str, Any]  # an OpenAI tool: {"type": "function", "function": {"name": ..., "parameters": ...}}


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of one tool call. `name` comes whole and once, before any arguments of that call."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ParsedDelta:
    """What a piece of text turned into, in order of kind."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class ParserStream(ABC):
    """State of one text being parsed. One instance a request, never shared."""

    @abstractmethod
    def feed(self, delta: str) -> ParsedDelta:
        """Take the next piece of text."""

    @abstractmethod
    def finish(self) -> ParsedDelta:
        """The text is over: give out whatever was held back."""


class ToolParser(ABC):
    """One tool-call format. One instance a server; it holds no state of a text."""

    def __init__(self, ctx: PluginContext | None = None) -> None:
        self.ctx = ctx or PluginContext()

    @abstractmethod
    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """A fresh machine for one text."""

    def grammar(self, tools: Sequence[Tool], choice: str) -> str | None:
        """An EBNF grammar that forces a call (`choice`: "required" or a tool's name), or None if not offered."""
        return None


class ReasoningParser(ABC):
    """One reasoning format. One instance a server; it holds no state of a text."""

    def __init__(self, ctx: PluginContext | None = None) -> None:
        self.ctx = ctx or PluginContext()

    @abstractmethod
    def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
        """A fresh machine. `prompt_opens_reasoning`: the chat template already wrote the opening marker."""
