"""ThinkingBudget: once a request's reasoning has its number of tokens, the end marker is all that can come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from core.interfaces.context import PluginContext
from core.interfaces.logit_processors import Int32, LogitProcessor, RowState, TokenVocabulary
from plugin_thinking_budget.settings import Settings

if TYPE_CHECKING:
    import torch

PROMPT_TOKENS = 8192  # of its end, in which an open start marker is looked for
MAX_MARKER = 200  # characters


class Arguments(BaseModel):
    """What a request gives. Markers that it leaves out are the operator's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    budget: int = Field(ge=0)
    start: str | None = Field(None, max_length=MAX_MARKER)
    end: str | None = Field(None, min_length=1, max_length=MAX_MARKER)


@dataclass(slots=True)
class Budget:
    """One request. start, end: markers as bytes. forced: the end marker's tokens.

    What follows is learned from the text: seen, its generated tokens that were looked at, None before the prompt was;
    inside: whether they end within reasoning; used: tokens of reasoning; tail: bytes that may be part of a marker.
    """

    budget: int
    start: bytes
    end: bytes
    forced: tuple[int, ...]
    seen: int | None = None
    inside: bool = False
    used: int = 0
    tail: bytes = b""


class ThinkingBudget(LogitProcessor):
    """The text is read as bytes, so that markers are found however they are cut into tokens."""

    def __init__(self, vocabulary: TokenVocabulary, ctx: PluginContext) -> None:
        super().__init__(vocabulary, ctx)
        self.settings = ctx.settings if isinstance(ctx.settings, Settings) else Settings(**dict(ctx.settings))

    def open(self, arguments: Mapping[str, Any]) -> Budget:
        given = Arguments.model_validate(dict(arguments))
        start = self.settings.start if given.start is None else given.start
        end = given.end or self.settings.end
        forced = self.vocabulary.encode(end)
        if not forced or b"".join(map(self.vocabulary.token_bytes, forced)) != end.encode():
            raise ValueError(f"end is {end!r}, which the model's tokens cannot spell")
        return Budget(given.budget, start.encode(), end.encode(), forced)

    def apply(self, rows: Sequence[RowState], logits: torch.Tensor) -> None:
        for index, row in enumerate(rows):
            token = self._next(row.state, row.prompt, row.generated)
            if token is not None:
                logits[index] = float("-inf")
                logits[index, token] = 0.0

    def _next(self, state: Budget, prompt: Int32, generated: Int32) -> int | None:
        """The token that has to come, None if any may."""
        if state.seen is None:
            state.seen = 0
            text = b"".join(map(self.vocabulary.token_bytes, prompt[-PROMPT_TOKENS:].tolist()))
            state.inside = not state.start or text.rfind(state.start) > text.rfind(state.end)
        for token in generated[state.seen :].tolist():
            self._read(state, self.vocabulary.token_bytes(token))
        state.seen = len(generated)
        if not state.inside or state.used < state.budget:
            return None
        return state.forced[self._forced_so_far(state, generated)]

    @staticmethod
    def _read(state: Budget, piece: bytes) -> None:
        """One more token. Its bytes may end one marker and begin another."""
        counted = state.inside
        state.tail += piece
        while True:
            marker = state.end if state.inside else state.start
            at = state.tail.find(marker) if marker else -1
            if at < 0:
                keep = max(0, len(marker) - 1)
                state.tail = state.tail[len(state.tail) - keep :] if keep else b""
                break
            state.tail = state.tail[at + len(marker) :]
            state.inside = not state.inside
        state.used += counted and state.inside

    @staticmethod
    def _forced_so_far(state: Budget, generated: Int32) -> int:
        """How many tokens of the end marker the text ends with already."""
        longest = min(len(state.forced) - 1, len(generated))
        for count in range(longest, 0, -1):
            if np.array_equal(generated[-count:], state.forced[:count]):
                return count
        return 0
