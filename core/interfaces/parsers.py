"""Parsers of generated text: reasoning and tool calls. Pure push machines, no I/O.

The law that holds for both: for every text and every way of cutting it into deltas, the concatenated output
of `feed` and `finish` is the same, and non-streaming is the stream fed once. Nothing of the text is lost.
Policy (undeclared tools, call ids, schema checks) is core's and applied after the parser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from core.interfaces.context import PluginContext
from core.interfaces.grammar import Structure

Tool = Mapping[str, Any]  # an OpenAI tool: {"type": "function", "function": {"name": ..., "parameters": ...}}


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of one tool call. `name` comes whole and once, before any arguments of that call, and all of these before
    the next call's name."""

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


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request asks of tool calls. mode: "auto" leaves the choice to the model, and only what it writes inside a
    call is held to the form; "required" forces at least one call. parallel: whether there may be more than one."""

    mode: Literal["auto", "required"]
    parallel: bool = True


class ToolParser(ABC):
    """One tool-call format. One instance a server; it holds no state of a text."""

    def __init__(self, ctx: PluginContext | None = None) -> None:
        self.ctx = ctx or PluginContext()

    @abstractmethod
    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """A fresh machine for one text."""

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """The structure that holds an answer to this format: with "required" nothing but calls of `tools` (a named
        tool comes as the only one of `tools`), with "auto" any text in which calls, where they begin, are well formed.
        Arguments follow each tool's `parameters` schema. None: not offered; core then forces calls as plain JSON and
        reads them itself, without the model's own format.

        What the structure allows, `stream` must read as calls.
        """
        return None

    def call_id(self, name: str, number: int) -> str | None:
        """The id that the model's chat template wants for the call `number` (from 0) of a conversation, a call of the
        tool `name`. Core writes it into the prompt in place of the client's, with the call and with its result. Each
        number has its own. None: the template takes any."""
        return None


class ReasoningParser(ABC):
    """One reasoning format. One instance a server; it holds no state of a text.

    end_marker: text that closes reasoning ("</think>"). Where a prompt opens reasoning, or `always_reasons`, structured
        output begins after it. None: structured output begins at once, whatever the model thinks.
    always_reasons: the text begins inside reasoning even if the prompt does not show it (its opening marker may be
        missing). `stream` is then called with True unless the prompt closes reasoning itself.
    """

    end_marker: ClassVar[str | None] = None
    always_reasons: ClassVar[bool] = False

    def __init__(self, ctx: PluginContext | None = None) -> None:
        self.ctx = ctx or PluginContext()

    @abstractmethod
    def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
        """A fresh machine. `prompt_opens_reasoning`: the chat template already wrote the opening marker."""
