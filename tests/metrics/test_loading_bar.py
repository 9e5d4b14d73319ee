from __future__ import annotations

import io

from core.metrics.loading import LoadingBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_phase_and_share() -> None:
    terminal = Terminal()
    with LoadingBar(terminal) as bar:
        bar("weights", 0.25)
        bar("weights", 0.5)
        bar("warm-up", 1.0)
    assert "loading" in terminal.getvalue()
    assert "warm-up" in terminal.getvalue()
    before = terminal.getvalue()
    bar("late", 1.0)
    bar.close()
    assert terminal.getvalue() == before


def test_a_file_sees_nothing() -> None:
    stream = io.StringIO()
    with LoadingBar(stream) as bar:
        bar("weights", 0.5)
    assert stream.getvalue() == ""
