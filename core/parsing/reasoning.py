"""Reasoning between markers at the beginning of an answer: what a format is made of, and the machine that reads it.

White space at markers belongs to the format: it is in neither the reasoning nor the content. Reasoning that is never
closed stays reasoning, and an answer that does not begin with an opening marker has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.parsers import ParsedDelta, ParserStream, ReasoningParser
from core.parsing.reader import SPACE, Machine, Markers, Reader, Reading


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """One format. No marker may begin another.

    open: opens reasoning. Where reasoning is open already (the prompt wrote the marker, or the model always reasons),
        one that the model writes itself is dropped.
    close: closes it.
    other_opens, other_closes: other spellings of the two.
    also_close: beginnings of what may follow reasoning that was not closed, a tool call say; they stay in the content.
    prefix: what content begins with instead of reasoning: all of the text stays content, the markers too, with `prefix`
        before it where reasoning was open already. For clients that look for markers themselves; "" for all others.
    """

    open: str
    close: str
    other_opens: tuple[str, ...] = ()
    other_closes: tuple[str, ...] = ()
    also_close: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def opens(self) -> tuple[str, ...]:
        """All that opens reasoning."""
        return (self.open, *self.other_opens)

    @property
    def ends(self) -> tuple[str, ...]:
        """All that ends reasoning."""
        return (self.close, *self.other_closes, *self.also_close)


class MarkedReasoningParser(ReasoningParser):
    """A reasoning parser that is its `form`; `end_marker` follows from it."""

    form: ClassVar[ReasoningFormat]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "form" in cls.__dict__:
            cls.end_marker = cls.form.close

    def __init__(self, ctx: PluginContext | None = None) -> None:
        super().__init__(ctx)
        self._ends = Markers(*self.form.ends)

    def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
        """See the interface."""
        return ReasoningStream(self.form, prompt_opens_reasoning, self._ends)


class ReasoningStream(ParserStream):
    """State of one text."""

    def __init__(self, form: ReasoningFormat, opened: bool, ends: Markers | None = None) -> None:
        """opened: reasoning is open where the text begins. ends: the format's closing markers, made once for all."""
        self._form = form
        self._ends = ends or Markers(*form.ends)
        self._reader = Reader()
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._space: list[str] = []  # at the end of the reasoning so far
        self._machine = Machine(self._reader, self._append(opened) if form.prefix else self._read(opened))

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        self._machine.feed(delta)
        return self._take()

    def finish(self) -> ParsedDelta:
        """See the interface."""
        self._machine.finish()
        return self._take()

    def _take(self) -> ParsedDelta:
        delta = ParsedDelta("".join(self._content), "".join(self._reasoning))
        self._content, self._reasoning = [], []
        return delta

    def _read(self, opened: bool) -> Reading[None]:
        reader, content = self._reader, self._content_piece
        space = yield from reader.space()
        found = yield from reader.literal(*self._form.opens)
        if found is None and not opened:
            content(space)
        else:
            yield from reader.space()
            ended = yield from reader.until(self._ends, self._reasoning_piece)
            if ended is None:
                return
            if ended in self._form.also_close:
                content(ended)
            else:
                yield from reader.space()
        yield from reader.all(content)

    def _append(self, opened: bool) -> Reading[None]:
        reader, content = self._reader, self._content_piece
        space = yield from reader.space()
        found = yield from reader.literal(*self._form.opens)
        content((self._form.prefix if opened and found is None else "") + space + (found or ""))
        yield from reader.all(content)

    def _content_piece(self, text: str) -> None:
        self._content.append(text)

    def _reasoning_piece(self, text: str) -> None:
        body = text.rstrip(SPACE)
        if body:
            self._reasoning += [*self._space, body]
            self._space = []
        if len(body) < len(text):
            self._space.append(text[len(body) :])
