"""The hook. Core constructs one in every process; requests are seen in the engine's."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from core.interfaces.context import PluginContext
from core.interfaces.hooks import RequestFinished, hookimpl


class RequestLog:
    """A hook is a plain class; what it listens to is marked. An implementation names only the arguments it wants."""

    def __init__(self, ctx: PluginContext) -> None:
        self._path: Path | None = ctx.settings.path
        self._lines: list[str] = []

    @hookimpl
    def core_request_finished(self, request: RequestFinished) -> None:
        # The engine waits for every listener, so nothing slow belongs here: the line is kept for the next batch.
        if self._path is not None:
            self._lines.append(json.dumps({"time": time.time(), **asdict(request)}))

    @hookimpl
    def core_steps_done(self) -> None:
        # About once a second.
        self._write()

    @hookimpl
    def core_engine_stopping(self) -> None:
        self._write()

    def _write(self) -> None:
        if self._path is not None and self._lines:
            lines, self._lines = self._lines, []
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
