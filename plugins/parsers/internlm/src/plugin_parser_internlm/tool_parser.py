"""InternLM 2.5 and 3, Intern-S1: a JSON object between action tokens."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing

BEGIN, PLUGIN, END = "<|action_start|>", "<|plugin|>", "<|action_end|>"


class InternlmToolParser(JsonToolParser):
    """{"name": ..., "parameters": {...}}; "arguments" is read, too."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=(BEGIN,),
                call=(
                    Literal((PLUGIN,)),
                    CallObject(argument_keys=("parameters", "arguments")),
                    Literal((END,)),
                ),
            ),
        ),
        writing=Writing(
            begin=f'{BEGIN}{PLUGIN}\n{{"name": "{NAME}", "parameters": ',
            end=f"}}{END}",
            separator="\n",
            quoted=True,
        ),
    )
