"""Phi-4-mini: "functools" and a JSON array, or special tokens around an object or an array."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing

WORD, BEGIN, END = "functools[", "<|tool_call|>", "<|/tool_call|>"
CALL = CallObject(argument_keys=("arguments", "parameters"))


class Phi4ToolParser(JsonToolParser):
    """All forms are read; the token form is written, whose end can be seen."""

    calls = JsonCalls(
        layouts=(
            Layout(opens=(WORD,), call=(CALL,), separator=",", closes=("]",)),
            Layout(opens=(BEGIN,), before=(Literal(("[",)),), call=(CALL,), separator=",", closes=("]", END)),
            Layout(opens=(BEGIN,), call=(CALL, Literal((END,)))),
        ),
        writing=Writing(begin=f'{BEGIN}{{"name": "{NAME}", "arguments": ', end=f"}}{END}", quoted=True),
    )
