"""IBM Granite: three forms of JSON objects, by generation."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing

TOKEN, TEXT, TEXT_END = "<|tool_call|>", "<tool_call>", "</tool_call>"
FUNCTION = "<function_call>"
OBJECT = f'{{"name": "{NAME}", "arguments": '


class GraniteToolParser(JsonToolParser):
    """Granite 3: a token, or the same word in angle brackets, and a JSON array."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=(TOKEN, TEXT),
                before=(Literal(("[",)),),
                call=(CallObject(),),
                separator=",",
                closes=("]", TEXT_END),
            ),
        ),
        writing=Writing(section_begin=f"{TOKEN}[", begin=OBJECT, end="}", separator=", ", section_end="]", quoted=True),
    )


class Granite4ToolParser(JsonToolParser):
    """Granite 4: an object inside tags."""

    calls = JsonCalls(
        layouts=(Layout(opens=(TEXT,), call=(CallObject(), Literal((TEXT_END,)))),),
        writing=Writing(begin=f"{TEXT}\n{OBJECT}", end=f"}}\n{TEXT_END}", separator="\n", quoted=True),
    )


class Granite20bFcToolParser(JsonToolParser):
    """Granite 20B function calling: a marker before each object, none behind it."""

    calls = JsonCalls(
        layouts=(Layout(opens=(FUNCTION,), call=(CallObject(),)),),
        writing=Writing(begin=f"{FUNCTION} {OBJECT}", end="}", separator="\n", quoted=True),
    )
