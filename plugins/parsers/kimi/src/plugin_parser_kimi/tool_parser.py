"""Kimi K2: JSON arguments between special tokens, behind an id that holds the name."""

from __future__ import annotations

from core.parsing.json_calls import Arguments, JsonCalls, JsonToolParser, Layout, Literal, Name
from core.parsing.structures import INDEX, NAME, Writing

CALLS, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


class KimiK2ToolParser(JsonToolParser):
    """functions.NAME:INDEX, then JSON; "functions." and the index may be missing."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=(CALLS,),
                call=(
                    Literal((CALL,)),
                    Name(prefix="functions.", index=True),
                    Literal((ARGUMENTS,)),
                    Arguments(),
                    Literal((CALL_END,)),
                ),
                separator="",
                closes=(CALLS_END,),
            ),
        ),
        writing=Writing(
            section_begin=CALLS,
            begin=f"{CALL}functions.{NAME}:{INDEX}{ARGUMENTS}",
            end=CALL_END,
            section_end=CALLS_END,
        ),
    )

    def call_id(self, name: str, number: int) -> str:
        """See the interface. The template writes the id as it is, and the model counts on."""
        return f"functions.{name}:{number}"
