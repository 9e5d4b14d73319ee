"""A torch profile of an engine's steps, written as one trace file that Perfetto and chrome://tracing open."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.interfaces.errors import EngineError

HOST, DEVICE = "CPU", "GPU"  # as people write them; the second is whatever device this torch can record
ACTIVITIES = (HOST, DEVICE)
PRIVATE = 0o600
logger = logging.getLogger("core.engine")


class Profiler:
    """One profile. Begun and ended by the thread that runs the steps.

    path: of the trace, which is there once the profile has ended. running: whether it records. num_steps: how many it
    has, once it has ended.
    """

    def __init__(self, profile: Any, path: str, first_step: int, num_steps: int | None) -> None:
        self._profile = profile
        self._first_step = first_step
        self._last_step = None if num_steps is None else first_step + num_steps
        self.num_steps = 0
        self.path = path
        self.running = True

    @classmethod
    def begin(
        cls,
        step: int,
        *,
        folder: str,
        num_steps: int | None = None,
        activities: Sequence[str] = (HOST,),
        with_stack: bool = False,
        record_shapes: bool = False,
        prefix: str = "core",
    ) -> Profiler:
        """Record from now on. step: finished steps so far. folder: exists or is made, with its parents.
        num_steps: ends by itself after so many; None by `stop`. Raises EngineError if it cannot be done."""
        from torch.profiler import ProfilerActivity, profile, supported_activities

        # A device's activity is known to torch by the device's own name, which is not core's to know.
        host = ProfilerActivity.CPU
        devices = [activity for activity in supported_activities() if activity != host]
        wanted = [host] if HOST in activities else []
        if DEVICE in activities:
            if not devices:
                raise EngineError("this torch records no device activity", hint='ask for activities: ["CPU"]')
            wanted += devices
        try:
            os.makedirs(folder, exist_ok=True)
            path = _free_path(Path(folder), prefix)
        except OSError as error:
            raise EngineError(f"cannot write a trace below {folder}: {error}") from error
        recorder = profile(
            activities=wanted, with_stack=with_stack, record_shapes=record_shapes, experimental_config=_all_threads()
        )
        recorder.start()
        logger.info("profiling into %s", path)
        return cls(recorder, path, step, num_steps)

    def due(self, step: int) -> bool:
        """Whether it records and has its number of steps."""
        return self.running and self._last_step is not None and step >= self._last_step

    def stop(self, step: int) -> None:
        """End it and write the trace; steps wait meanwhile. step: finished steps so far. Raises EngineError if the
        trace cannot be written."""
        self.running = False
        self.num_steps = step - self._first_step
        profile, self._profile = self._profile, None
        try:
            profile.stop()
            profile.export_chrome_trace(self.path)
            os.chmod(self.path, PRIVATE)  # torch makes the file anew
        except Exception as error:
            raise EngineError(f"the trace {self.path} could not be written: {error}") from error
        logger.info("the profile is in %s", self.path)


def _all_threads() -> Any:
    """The executor may compute on a thread of its own, which a profile leaves out unless told."""
    from torch._C._profiler import _ExperimentalConfig

    try:
        return _ExperimentalConfig(profile_all_threads=True)
    except TypeError:  # a torch that has no such option
        return None


def _free_path(folder: Path, prefix: str) -> str:
    """A file of its own, which nobody else has made or can read."""
    stem = f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for number in range(1000):
        path = folder / (f"{stem}.trace.json" if not number else f"{stem}-{number}.trace.json")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
        except FileExistsError:
            continue
        return str(path)
    raise FileExistsError(f"{stem} and a thousand more are taken")
