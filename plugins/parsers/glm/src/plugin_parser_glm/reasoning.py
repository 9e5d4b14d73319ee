"""Reasoning of GLM-4.5 and later."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class Glm45ReasoningParser(MarkedReasoningParser):
    """<think> ... </think>; with `enable_thinking` false the template closes an empty one itself."""

    form = ReasoningFormat(open="<think>", close="</think>", also_close=("<tool_call>",))
