"""Mistral: a JSON array of calls, or name and arguments apart, as its tokenizers from version 11 on write them."""

from __future__ import annotations

from collections.abc import Sequence

from core.interfaces.grammar import Structure
from core.interfaces.parsers import Tool, ToolChoice
from core.parsing.json_calls import Arguments, CallObject, JsonCalls, JsonToolParser, Layout, Literal, Name, Word
from core.parsing.structures import NAME, Writing, calls_structure, section_structure, written_structure, written_tags

MARKER, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
ARRAY = Writing(
    section_begin=f"{MARKER}[",
    begin=f'{{"name": "{NAME}", "arguments": ',
    end="}",
    separator=", ",
    section_end="]",
    quoted=True,
)
APART = Writing(begin=f"{MARKER}{NAME}{ARGUMENTS}")


class MistralToolParser(JsonToolParser):
    """All forms are read. Of those that are written, a model takes the one that it has learnt: an array, with or
    without a space before it, or name and arguments apart."""

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
        writing=ARRAY,
    )

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface."""
        apart = written_structure(APART, tools, choice)
        if apart is None:
            return None
        only = ToolChoice("required", choice.parallel)
        arrays = [
            section_structure(begin, written_tags(ARRAY, tools), "]", only, ARRAY.separator)
            for begin in (f"{MARKER}[", f"{MARKER} [")
        ]
        if choice.mode == "required":
            return {"type": "or", "elements": [*arrays, apart]}
        return calls_structure([*arrays, *written_tags(APART, tools)], choice, [MARKER])

    def call_id(self, name: str, number: int) -> str:
        """See the interface. Templates refuse ids that are not nine letters and digits."""
        return f"{number:09d}"
