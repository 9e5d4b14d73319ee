"""Mistral: a JSON array of calls, or name and arguments apart, as its tokenizers from version 11 on write them."""

from __future__ import annotations

from core.parsing.json_calls import Arguments, CallObject, JsonCalls, JsonToolParser, Layout, Literal, Name, Word
from core.parsing.structures import NAME, Writing

MARKER, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class MistralToolParser(JsonToolParser):
    """All forms are read; the array is written, which every version of the models has seen."""

    calls = JsonCalls(
        layouts=(
            Layout(opens=(MARKER,), before=(Literal(("[",)),), call=(CallObject(),), separator=",", closes=("]",)),
            Layout(
                opens=(MARKER,),
                call=(Name(), Literal((CALL_ID,)), Word(), Literal((ARGUMENTS,)), Arguments()),
            ),
            Layout(opens=(MARKER,), call=(Name(), Literal((ARGUMENTS,), optional=True), Arguments())),
            Layout(opens=(MARKER,), call=(CallObject(),)),
        ),
        writing=Writing(
            section_begin=f"{MARKER}[",
            begin=f'{{"name": "{NAME}", "arguments": ',
            end="}",
            separator=", ",
            section_end="]",
            quoted=True,
        ),
    )
