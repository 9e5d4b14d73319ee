"""Where the time of a step goes, from the engine's and the runner's own counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# Of the engine's loop. `step` is from the end of one step to the end of the next, so the others are parts of it; with
# overlap the host's parts and the device's run at the same time.
_ENGINE = {"step_seconds": "step", "schedule_seconds": "schedule", "device_seconds": "device"}


class Counters:
    """Reads counters of seconds before and after a run. engine: with `stats`; runner: with a dataclass `stats`."""

    def __init__(self, engine: Any, runner: Any) -> None:
        self._engine, self._runner = engine, runner

    def read(self) -> dict[str, float]:
        """Every counter now: steps, replayed steps, and seconds by stage."""
        values = self._engine.stats()
        found = {name: values[key] for key, name in _ENGINE.items()} | {"steps": values["steps"]}
        for entry in fields(self._runner.stats):
            value = getattr(self._runner.stats, entry.name)
            if entry.name.endswith("_s") and entry.name != "device_time_s":
                found[entry.name.removesuffix("_time_s").removesuffix("_s")] = value
            elif entry.name == "replayed_steps":
                found[entry.name] = value
        return found


def breakdown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Mean milliseconds a step of each stage, with the number of steps and those that ran as recorded."""
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    steps = grown.pop("steps")
    result = {"steps": steps, "replayed_steps": grown.pop("replayed_steps", 0)}
    return result | {
        f"{name}_ms": round(seconds / steps * 1e3, 4) for name, seconds in grown.items() if steps and seconds
    }


def render_breakdown(parts: Mapping[str, float]) -> str:
    """One line for people."""
    stages = "  ".join(f"{name.removesuffix('_ms')} {value:.3f}" for name, value in parts.items() if name[-3:] == "_ms")
    return f"{parts['steps']:.0f} steps ({parts['replayed_steps']:.0f} recorded), ms a step: {stages}"
