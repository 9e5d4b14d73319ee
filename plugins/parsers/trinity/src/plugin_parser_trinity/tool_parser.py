"""Trinity: JSON objects inside tags, which may stand inside thinking."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing


class TrinityToolParser(JsonToolParser):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>; where thinking ended at a call, the </think> that comes
    behind it belongs to the format."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=("<tool_call>",),
                call=(CallObject(), Literal(("</tool_call>",))),
                closes=("</think>",),
            ),
        ),
        writing=Writing(
            begin=f'<tool_call>\n{{"name": "{NAME}", "arguments": ',
            end="}\n</tool_call>",
            separator="\n",
            quoted=True,
        ),
    )
