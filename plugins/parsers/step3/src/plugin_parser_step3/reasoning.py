"""Reasoning of Step3 and Step-3.5: the models always think, and may leave the opening marker out."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class Step3ReasoningParser(MarkedReasoningParser):
    """<think> ... </think>"""

    form = ReasoningFormat(open="<think>", close="</think>")
    always_reasons = True
