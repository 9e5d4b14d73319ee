"""Hermes 2 Pro and later, Qwen 2.5, Qwen 3: JSON objects inside tags, with or without line breaks."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing


class HermesToolParser(JsonToolParser):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>"""

    calls = JsonCalls(
        layouts=(Layout(opens=("<tool_call>",), call=(CallObject(), Literal(("</tool_call>",)))),),
        writing=Writing(
            begin=f'<tool_call>\n{{"name": "{NAME}", "arguments": ',
            end="}\n</tool_call>",
            separator="\n",
            quoted=True,
        ),
    )
