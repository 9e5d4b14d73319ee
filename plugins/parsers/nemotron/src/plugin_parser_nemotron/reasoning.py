"""Reasoning of Nemotron 3."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class NemotronReasoningParser(MarkedReasoningParser):
    """The template opens reasoning, or closes an empty one where `enable_thinking` is false."""

    form = ReasoningFormat(open="<think>", close="</think>", also_close=("<tool_call>",))
