"""Reasoning of Qwen3 models."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat

FORMAT = ReasoningFormat(open="<think>", close="</think>", also_close=("<tool_call>",))


class Qwen3ReasoningParser(MarkedReasoningParser):
    """The model opens reasoning itself; with `enable_thinking` false the template closes an empty one."""

    form = FORMAT


class Qwen3ThinkingReasoningParser(MarkedReasoningParser):
    """Models that only think: templates open reasoning, older ones and other servers' do not."""

    form = FORMAT
    always_reasons = True
