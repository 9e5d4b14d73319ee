"""Progress of start-up for people: a bar on a terminal, nothing where nobody watches (the log has the phases)."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class LoadingBar:
    """Call it with (phase, fraction); one line that goes away when the bar is closed.

    stream: where people look, standard error by default. Safe to call from any one thread at a time.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, phase: str, fraction: float) -> None:
        if not self._shown:
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("loading {task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._progress.start()
        if self._task is None:
            self._task = self._progress.add_task(phase, total=1.0)
        self._progress.update(self._task, description=phase, completed=fraction)

    def close(self) -> None:
        """Take the bar away; calling it again does nothing."""
        progress, self._progress, self._task = self._progress, None, None
        self._shown = False
        if progress is not None:
            progress.stop()

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
