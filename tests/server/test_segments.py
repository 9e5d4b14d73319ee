"""Segments: however the answer is cut into deltas, the parts are the same, one after another, and no word is lost."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from core.frontend.output import OutputDelta
from core.frontend.tool_policy import ToolCallPiece
from core.server.segments import Kind, Segmenter

WORDS = st.text(alphabet="ab \n🙂", max_size=8)


@dataclass(frozen=True)
class Part:
    """What a model says in one go."""

    kind: Kind
    text: str


PARTS = st.lists(st.builds(Part, st.sampled_from(list(Kind)), WORDS), max_size=6)


def deltas_of(parts: list[Part], cuts: list[int]) -> list[OutputDelta]:
    """`parts`, each cut into pieces of these sizes in turn, and an end."""
    made: list[OutputDelta] = []
    calls = 0
    cut = 0
    for part in parts:
        if part.kind is Kind.CALL:
            made.append(OutputDelta(tool_calls=[ToolCallPiece(calls, f"call_{calls}", "f")]))
            calls += 1
        rest = part.text
        while rest:
            size = cuts[cut % len(cuts)]
            cut += 1
            piece, rest = rest[:size], rest[size:]
            match part.kind:
                case Kind.TEXT:
                    made.append(OutputDelta(text=piece))
                case Kind.REASONING:
                    made.append(OutputDelta(reasoning=piece))
                case Kind.CALL:
                    made.append(OutputDelta(tool_calls=[ToolCallPiece(calls - 1, arguments=piece)]))
    return [*made, OutputDelta(finish_reason="stop", matched_stop=7)]


def run(deltas: list[OutputDelta]) -> Segmenter:
    """All of it, with the order of steps checked."""
    segmenter = Segmenter()
    current, grown = None, ""
    for delta in deltas:
        for step in segmenter.feed(delta):
            if step.begins:
                assert current is None
                current, grown = step.segment, ""
            elif step.ends:
                assert step.segment is current
                assert (current.text, current.complete) == (grown, True)
                current = None
            else:
                assert step.segment is current
                assert step.text
                grown += step.text
    assert current is None
    return segmenter


def shown(segmenter: Segmenter) -> list[tuple]:
    return [(segment.kind, segment.id, segment.name, segment.text) for segment in segmenter.segments]


@given(PARTS, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_every_cut_gives_the_same_segments(parts: list[Part], cuts: list[int]) -> None:
    segmenter = run(deltas_of(parts, cuts))
    assert shown(segmenter) == shown(run(deltas_of(parts, [100])))
    for kind in Kind:
        said = "".join(part.text for part in parts if part.kind is kind).split()
        kept = "".join(segment.text for segment in segmenter.segments if segment.kind is kind).split()
        assert "".join(kept) == "".join(said)
    assert (segmenter.finish_reason, segmenter.matched_stop) == ("stop", 7)


def test_blank_text_between_calls_is_no_segment() -> None:
    parts = [Part(Kind.REASONING, "hm"), Part(Kind.TEXT, "\n\n"), Part(Kind.CALL, "{}"), Part(Kind.TEXT, "\n"),
             Part(Kind.CALL, "{}"), Part(Kind.TEXT, " ")]  # fmt: skip
    assert [segment.kind for segment in run(deltas_of(parts, [1])).segments] == [Kind.REASONING, Kind.CALL, Kind.CALL]


def test_blank_text_in_front_of_words_is_kept() -> None:
    parts = [Part(Kind.REASONING, "hm"), Part(Kind.TEXT, "\n\n"), Part(Kind.TEXT, "a ")]
    assert [segment.text for segment in run(deltas_of(parts, [1])).segments] == ["hm", "\n\na "]


def test_blank_text_alone_is_the_answer() -> None:
    assert shown(run(deltas_of([Part(Kind.TEXT, " \n")], [1]))) == [(Kind.TEXT, "", "", " \n")]
