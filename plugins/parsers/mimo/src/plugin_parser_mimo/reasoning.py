"""Reasoning of MiMo: off unless `enable_thinking` is true."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class MimoReasoningParser(MarkedReasoningParser):
    """<think> ... </think>"""

    form = ReasoningFormat(open="<think>", close="</think>")
