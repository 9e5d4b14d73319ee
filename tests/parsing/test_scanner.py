"""What the scanner lets out depends on the characters only, and never holds a part of a pattern."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.parsing.scanner import Remover, Scanner

LETTERS = st.text(alphabet="abc", max_size=30)
PATTERNS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=4)


def cut(text: str, data: st.DataObject) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def first_end(text: str, patterns: list[str]) -> tuple[int, int] | None:
    """(start, end) by the definition: the first place where a pattern ends, the longest one there."""
    for end in range(1, len(text) + 1):
        ending = [pattern for pattern in patterns if text[:end].endswith(pattern)]
        if ending:
            return end - max(map(len, ending)), end
    return None


@given(text=LETTERS, patterns=PATTERNS, data=st.data())
def test_finds_what_the_definition_finds(text: str, patterns: list[str], data: st.DataObject) -> None:
    scanner, shown = Scanner(patterns), ""
    expected = first_end(text, patterns)
    consumed = 0
    for piece in cut(text, data):
        safe, found, rest = scanner.feed(piece)
        shown += safe
        consumed += len(piece)
        if found is not None:
            assert expected is not None
            assert (len(shown), consumed - len(rest)) == expected
            assert found == text[expected[0] : expected[1]]
            return
        # At any time what is out is followed by what is held, and the held part may still become a pattern.
        assert shown + scanner.held == text[:consumed]
        assert scanner.held == "" or any(p.startswith(scanner.held) and p != scanner.held for p in patterns)
    assert expected is None
    assert shown + scanner.flush() == text


@given(text=LETTERS, patterns=PATTERNS, data=st.data())
def test_remover_does_not_depend_on_the_cuts(text: str, patterns: list[str], data: st.DataObject) -> None:
    whole, pieces = Remover(patterns), Remover(patterns)
    expected = whole.feed(text) + whole.flush()
    assert "".join(pieces.feed(piece) for piece in cut(text, data)) + pieces.flush() == expected


def test_unarmed_patterns_are_text() -> None:
    scanner = Scanner(["ab", "xaby"])
    assert scanner.feed("xab", armed=False) == ("", None, "")  # may become xaby
    assert scanner.feed("c") == ("xabc", None, "")  # the ab in the held part was let pass
    assert scanner.feed("dab.") == ("d", "ab", ".")
