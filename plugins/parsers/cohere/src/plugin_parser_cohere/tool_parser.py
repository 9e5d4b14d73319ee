"""Cohere's Command models: a JSON array of actions between special tokens."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing

BEGIN, END = "<|START_ACTION|>", "<|END_ACTION|>"
ACTION = CallObject(name_keys=("tool_name",), argument_keys=("parameters",), ignored_keys=("tool_call_id",))


class CohereToolParser(JsonToolParser):
    """[{"tool_call_id": ..., "tool_name": ..., "parameters": {...}}, ...]; one object without array is read, too."""

    calls = JsonCalls(
        layouts=(
            Layout(opens=(BEGIN,), before=(Literal(("[",)),), call=(ACTION,), separator=",", closes=("]", END)),
            Layout(opens=(BEGIN,), call=(ACTION,), closes=(END,)),
        ),
        writing=Writing(
            section_begin=f"{BEGIN}[\n",
            begin=f'    {{"tool_name": "{NAME}", "parameters": ',
            end="}",
            separator=",\n",
            section_end=f"\n]{END}",
            quoted=True,
        ),
    )
