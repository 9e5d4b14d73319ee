"""Reasoning of DeepSeek models."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class DeepSeekR1ReasoningParser(MarkedReasoningParser):
    """R1 always thinks: newer templates open reasoning, with the first one the model did, or left the marker out."""

    form = ReasoningFormat(open="<think>", close="</think>")
    always_reasons = True


class DeepSeekV3ReasoningParser(MarkedReasoningParser):
    """V3.1 and later think only where the template's `thinking` is true; it opens or closes reasoning in the prompt."""

    form = ReasoningFormat(open="<think>", close="</think>")
