"""Reasoning of MiniMax M2: the template opens it, so the model writes only the closing marker."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class MinimaxReasoningParser(MarkedReasoningParser):
    """<think> ... </think>"""

    form = ReasoningFormat(open="<think>", close="</think>")
    always_reasons = True


class MinimaxAppendThinkParser(MarkedReasoningParser):
    """Nothing is split off: the content is the text, with the opening marker that the template took before it. The
    models want their thoughts back in the conversation, and so they are there for clients that know no reasoning."""

    form = ReasoningFormat(open="<think>", close="</think>", prefix="<think>")
    always_reasons = True
