"""Llama 3.1 to 3.3: bare JSON objects, which are the whole answer or come after a marker."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout
from core.parsing.structures import NAME, Writing

MARKER = "<|python_tag|>"
CALL = (CallObject(argument_keys=("arguments", "parameters"), needs_arguments=True),)
BEGIN = f'{{"name": "{NAME}", "parameters": '


class Llama3ToolParser(JsonToolParser):
    """{"name": ..., "parameters": {...}}, several with ";" or nothing but white space between them.

    Without the marker, calls are read only where the answer begins with them.
    """

    calls = JsonCalls(
        layouts=(
            Layout(opens=(MARKER,), call=CALL, separator=";", may_lack_separator=True),
            Layout(at_start=True, call=CALL, separator=";", may_lack_separator=True),
        ),
        writing=Writing(begin=BEGIN, end="}", separator="; ", quoted=True),
        writing_auto=Writing(begin=MARKER + BEGIN, end="}", quoted=True),
    )
