"""Reasoning of Magistral (2507 and later) and of Mistral models that can think."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class MistralReasoningParser(MarkedReasoningParser):
    """[THINK] ... [/THINK], which are special tokens; the model opens it where the system prompt or the reasoning
    effort asks for it."""

    form = ReasoningFormat(open="[THINK]", close="[/THINK]")
