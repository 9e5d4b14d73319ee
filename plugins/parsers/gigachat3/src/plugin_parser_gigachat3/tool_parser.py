"""GigaChat 3: a message of the role "function call" that is one JSON object."""

from __future__ import annotations

from core.parsing.json_calls import CallObject, JsonCalls, JsonToolParser, Layout, Literal
from core.parsing.structures import NAME, Writing

ROLE, ROLE_END, MESSAGE_END = "function call", "<|role_sep|>", "<|message_sep|>"
TOKEN = "<|function_call|>"


class GigaChat3ToolParser(JsonToolParser):
    """{"name": ..., "arguments": {...}} behind the role or behind a token of its own. Without the separator, which a
    tokenizer may leave out of its text, the object must follow the role at once."""

    calls = JsonCalls(
        layouts=(
            Layout(
                opens=(ROLE,),
                call=(Literal((ROLE_END,), optional=True), CallObject()),
                closes=(MESSAGE_END,),
            ),
            Layout(opens=(TOKEN,), call=(CallObject(),), closes=(MESSAGE_END,)),
        ),
        writing=Writing(
            begin=f'{ROLE}{ROLE_END}\n{{"name": "{NAME}", "arguments": ',
            end="}",
            separator=f"{MESSAGE_END}\n\n",
            quoted=True,
        ),
    )
