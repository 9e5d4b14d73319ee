"""From output deltas to what block-shaped protocols send: segments that begin, grow and end, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from core.frontend.output import OutputDelta, TokenLogprob
from core.frontend.tool_policy import ToolCallPiece


class Kind(StrEnum):
    """What a segment holds. CALL: a tool call, its text the arguments."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class Segment:
    """A part of an answer. text: all of it so far. id, name: of a call. complete: nothing more comes."""

    kind: Kind
    id: str = ""
    name: str = ""
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One change. Where `begins`, the segment is new; where `ends`, complete; else `text` was added to it."""

    segment: Segment
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    begins: bool = False
    ends: bool = False


class Segmenter:
    """State of one answer.

    Blank text makes no segment of its own: what a model writes between a call and the next is layout. It is kept where
    text follows, and where nothing else was said. logprobs belong to the text beside which they came.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.finish_reason: str | None = None
        self.matched_stop: int | str | None = None
        self._open: Segment | None = None
        self._blank = ""
        self._blank_logprobs: list[TokenLogprob] = []
        self._calls: dict[int, Segment] = {}

    def feed(self, delta: OutputDelta) -> Iterator[Step]:
        """What `delta` changes. Its order is reasoning, text, calls; after its finish_reason all segments are ended."""
        if delta.reasoning:
            yield from self._add(Kind.REASONING, delta.reasoning)
        if delta.text:
            yield from self._text(delta.text, delta.logprobs)
        for piece in delta.tool_calls:
            yield from self._call(piece)
        if delta.finish_reason is not None:
            self.finish_reason, self.matched_stop = delta.finish_reason, delta.matched_stop
            if self._blank and not self.segments:
                yield from self._text("", [], last=True)
            yield from self._end()

    def _text(self, text: str, logprobs: Sequence[TokenLogprob], last: bool = False) -> Iterator[Step]:
        if self._open is None or self._open.kind is not Kind.TEXT:
            self._blank += text
            self._blank_logprobs += logprobs
            if not last and not self._blank.strip():
                return
            text, logprobs = self._blank, self._blank_logprobs
            self._blank, self._blank_logprobs = "", []
        yield from self._add(Kind.TEXT, text, tuple(logprobs))

    def _add(self, kind: Kind, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Iterator[Step]:
        if self._open is None or self._open.kind is not kind:
            yield from self._begin(Segment(kind))
        assert self._open is not None
        yield self._grown(self._open, text, logprobs)

    def _call(self, piece: ToolCallPiece) -> Iterator[Step]:
        if piece.name is not None:
            self._calls[piece.index] = Segment(Kind.CALL, piece.id or "", piece.name)
            yield from self._begin(self._calls[piece.index])
        if piece.arguments:
            yield self._grown(self._calls[piece.index], piece.arguments)

    def _grown(self, segment: Segment, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Step:
        assert not segment.complete, "parsers give a call's pieces before the next one's"
        segment.text += text
        segment.logprobs += logprobs
        return Step(segment, text, logprobs)

    def _begin(self, segment: Segment) -> Iterator[Step]:
        yield from self._end()
        self._blank, self._blank_logprobs = "", []
        self.segments.append(segment)
        self._open = segment
        yield Step(segment, begins=True)

    def _end(self) -> Iterator[Step]:
        if self._open is not None:
            segment, self._open = self._open, None
            segment.complete = True
            yield Step(segment, ends=True)
