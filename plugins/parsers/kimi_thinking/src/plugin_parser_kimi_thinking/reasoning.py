"""Reasoning of Kimi models."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class KimiReasoningParser(MarkedReasoningParser):
    """Kimi-VL-Thinking and Kimi-Dev."""

    form = ReasoningFormat(open="◁think▷", close="◁/think▷")


class KimiK2ReasoningParser(MarkedReasoningParser):
    """Kimi-K2-Thinking and K2.5."""

    form = ReasoningFormat(open="<think>", close="</think>", also_close=("<|tool_calls_section_begin|>",))
