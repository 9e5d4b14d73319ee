"""DeepSeek V3, R1 and V3.1: JSON arguments between special tokens."""

from __future__ import annotations

from core.parsing.json_calls import Arguments, JsonCalls, JsonToolParser, Layout, Literal, Name, Word
from core.parsing.structures import NAME, Writing

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


class DeepSeekV3ToolParser(JsonToolParser):
    """The type of the call ("function"), its name, and a fenced block of JSON."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=(CALLS,),
                call=(
                    Literal((CALL,)),
                    Word(),
                    Literal((SEPARATOR,)),
                    Name(),
                    Literal(("```json",)),
                    Arguments(),
                    Literal(("```",)),
                    Literal((CALL_END,)),
                ),
                separator="",
                closes=(CALLS_END,),
            ),
        ),
        writing=Writing(
            section_begin=CALLS,
            begin=f"{CALL}function{SEPARATOR}{NAME}\n```json\n",
            end=f"\n```{CALL_END}",
            separator="\n",
            section_end=CALLS_END,
        ),
    )


class DeepSeekV31ToolParser(JsonToolParser):
    """The name, and JSON."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=(CALLS,),
                call=(Literal((CALL,)), Name(), Literal((SEPARATOR,)), Arguments(), Literal((CALL_END,))),
                separator="",
                closes=(CALLS_END,),
            ),
        ),
        writing=Writing(section_begin=CALLS, begin=f"{CALL}{NAME}{SEPARATOR}", end=CALL_END, section_end=CALLS_END),
    )
