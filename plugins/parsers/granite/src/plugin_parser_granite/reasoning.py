"""Reasoning of IBM Granite: sentences in Granite 3.2, tags in Granite 4."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class GraniteReasoningParser(MarkedReasoningParser):
    """Granite 3.2, where the template's `thinking` is true. Quantized models write "Here's" now and then."""

    form = ReasoningFormat(
        open="Here is my thought process:",
        other_opens=("Here's my thought process:",),
        close="Here is my response:",
        other_closes=("Here's my response:",),
    )


class GraniteThinkingReasoningParser(MarkedReasoningParser):
    """Granite 4 models that think; a tool call ends reasoning too."""

    form = ReasoningFormat(open="<think>", close="</think>", also_close=("<tool_call>",))
