"""What an engine does beside generating: the operations of `Control` messages, on the engine's own thread."""

from __future__ import annotations

import logging
from typing import Any

from core.engine.engine import Engine
from core.engine.profiling import Profiler
from core.interfaces.errors import EngineError

OPERATIONS = ("flush_cache", "pause", "resume", "set_log_level", "start_profile", "stats", "stop_profile")
LOGGERS = ("", "core")  # the process's own, and the tree whose level a parent in the same process sets
logger = logging.getLogger("core.engine")


class EngineControl:
    """Operations of one engine. Called between two turns of its loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._profiler: Profiler | None = None

    def run(self, op: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do it; returns what goes back. Raises what the operation raises, EngineError for an unknown one."""
        if op not in OPERATIONS:
            raise EngineError(f"the engine knows no operation {op!r}", hint=f"there are {', '.join(OPERATIONS)}")
        done: dict[str, Any] = getattr(self, f"_{op}")(**arguments)
        return done

    def turned(self) -> None:
        """The loop has turned: a profile of a number of steps may be complete."""
        if self._profiler is not None and self._profiler.due(self._engine.steps):
            self._end(self._profiler)

    def close(self) -> None:
        """The engine ends; a profile that runs is written."""
        if self._profiler is not None and self._profiler.running:
            self._end(self._profiler)

    def _end(self, profiler: Profiler) -> None:
        """A profile is no reason for an engine to fail."""
        try:
            profiler.stop(self._engine.steps)
        except EngineError as error:
            logger.error("%s", error.message)

    def _stats(self) -> dict[str, Any]:
        return self._engine.stats()

    def _flush_cache(self) -> dict[str, Any]:
        self._engine.flush_cache()
        return {}

    def _pause(self) -> dict[str, Any]:
        self._engine.paused = True
        return {}

    def _resume(self) -> dict[str, Any]:
        self._engine.paused = False
        return {}

    def _set_log_level(self, level: str) -> dict[str, Any]:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(level.upper())
        self._engine.set_log_level(level)
        return {}

    def _start_profile(self, **options: Any) -> dict[str, Any]:
        if self._profiler is not None and self._profiler.running:
            raise EngineError("a profile is being taken already", hint="end it with /stop_profile")
        self._profiler = Profiler.begin(self._engine.steps, **options)
        return {"path": self._profiler.path}

    def _stop_profile(self) -> dict[str, Any]:
        if self._profiler is None:
            raise EngineError("no profile was started", hint="begin one with /start_profile")
        if self._profiler.running:
            self._profiler.stop(self._engine.steps)
        return {"path": self._profiler.path, "num_steps": self._profiler.num_steps}
