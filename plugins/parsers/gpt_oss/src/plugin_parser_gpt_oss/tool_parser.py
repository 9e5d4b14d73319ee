"""Calls of gpt-oss: messages whose recipient is a function, in the header's channel or in its role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.interfaces.grammar import Structure
from core.interfaces.parsers import Tool, ToolChoice
from core.parsing.json_calls import Arguments, JsonCalls, JsonToolParser, Layout, Literal, Name
from core.parsing.structures import NAME, Writing, calls_structure, written_tags
from plugin_parser_gpt_oss.markers import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, TO

_CHANNEL = Literal(("commentary", "analysis"))
_TYPES = ("json", "code")  # what the models call the arguments, with the token for it or without
_TYPE = Literal((MESSAGE, *(f"{mark}{name}{MESSAGE}" for mark in (CONSTRAIN, "") for name in _TYPES)))
_IN_CHANNEL = (_CHANNEL, Literal((TO,)), Name(), _TYPE, Arguments())
_IN_ROLE = (Literal((TO,)), Name(), Literal((CHANNEL,)), _CHANNEL, _TYPE, Arguments())
_CLOSES = (CALL, END, RETURN)
_WRITTEN = f"{CHANNEL}commentary {TO}{NAME} {CONSTRAIN}json{MESSAGE}"


class GptOssToolParser(JsonToolParser):
    """<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>

    A call is complete with its JSON: the closing token usually stops the text and is not seen. One call a turn.
    """

    calls = JsonCalls(
        layouts=(
            Layout(opens=(CHANNEL,), call=_IN_CHANNEL, closes=_CLOSES),
            Layout(opens=(START,), call=(Literal((CHANNEL,)), *_IN_CHANNEL), closes=_CLOSES),
            Layout(opens=(START,), call=_IN_ROLE, closes=_CLOSES),
            Layout(at_start=True, call=_IN_ROLE, closes=_CLOSES),
        ),
        writing=Writing(begin=_WRITTEN),
    )

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface. The message may or may not begin with its role: a prompt ends with the role, and behind
        reasoning the model writes it anew."""
        if not tools:
            return None
        once = replace(choice, parallel=False)
        if once.mode == "auto":
            return super().structure(tools, once)
        tags = [*written_tags(Writing(START + _WRITTEN), tools), *written_tags(self.calls.writing, tools)]
        return calls_structure(tags, once, [])
