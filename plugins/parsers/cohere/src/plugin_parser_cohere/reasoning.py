"""Reasoning, and plans before actions, of Cohere's Command models."""

from __future__ import annotations

from core.parsing.reasoning import MarkedReasoningParser, ReasoningFormat


class CohereReasoningParser(MarkedReasoningParser):
    """<|START_THINKING|> ... <|END_THINKING|>, which are special tokens; the model opens it, or the template does."""

    form = ReasoningFormat(
        open="<|START_THINKING|>",
        close="<|END_THINKING|>",
        also_close=("<|START_ACTION|>", "<|START_RESPONSE|>", "<|START_TEXT|>"),
    )
