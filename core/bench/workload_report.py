"""What a run of workloads found: a table for people, and one JSON object that says what it was measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from packaging.requirements import Requirement

from core.bench.breakdown import render_breakdown
from core.bench.ceilings import Ceilings
from core.bench.counting import ModelCounts
from core.bench.first_token import Start
from core.bench.profile import StepProfile
from core.bench.workload_run import Measured
from core.registry.resolution import Resolution

UNITS = {
    "ms_per_token": "ms/token",
    "input_tokens_per_s": "in tok/s",
    "output_tokens_per_s": "out tok/s",
    "start_s": "s",
}
_LIBRARIES = ("core", "torch", "numpy", "transformers")


def facts(resolution: Resolution) -> dict[str, Any]:
    """When, on what, and with which versions and settings."""
    versions = {name: version for name in _LIBRARIES if (version := _version(name)) is not None}
    for plugin in resolution.lock().plugins:
        versions.setdefault(plugin.distribution, plugin.version)
        if plugin.distribution != "core":
            versions = _needs(plugin.distribution) | versions
    probe = resolution.hardware.target.probe()
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": probe.description or resolution.hardware.name,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "command": sys.argv[1:],
        "versions": versions,
        "settings": dict(resolution.effective),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _needs(distribution: str) -> dict[str, str]:
    """Versions of what an installed distribution requires, as far as it is installed."""
    if _version(distribution) is None:
        return {}
    names = [Requirement(text).name for text in importlib.metadata.requires(distribution) or ()]
    return {name: version for name in names if (version := _version(name)) is not None}


@dataclass(slots=True)
class Found:
    """Everything, raw. divisor: that made the workloads smaller; 1 is as they are named. facts: see `facts`. starts: W0
    with empty and filled caches. failed: workload -> why."""

    divisor: int
    facts: dict[str, Any] = field(default_factory=dict)
    counts: ModelCounts | None = None
    ceilings: Ceilings | None = None
    starts: dict[str, Start] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    profiles: dict[str, StepProfile] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self.facts | {
            "divisor": self.divisor,
            "ceilings": None if self.ceilings is None else asdict(self.ceilings),
            "counts": None if self.counts is None else asdict(self.counts),
            "starts": {name: asdict(start) for name, start in self.starts.items()},
            "workloads": {item.work.name: asdict(item) for item in self.measured},
            "profiles": {name: asdict(found) for name, found in self.profiles.items()},
            "failed": self.failed,
        }


def render_starts(starts: dict[str, Start]) -> str:
    """W0, one line for each start."""
    lines = []
    for name, start in starts.items():
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in start.phases.items())
        figures = f"ready {start.ready_s:.2f} s, first token {start.first_token_s:.2f} s"
        lines.append(f"W0     start, caches {name}: {figures} ({phases})")
    return "\n".join(lines)


def render_model(counts: ModelCounts, ceilings: Ceilings) -> str:
    """Ceilings and counts, two lines."""
    eight = ceilings.product_8bit_ops_per_s
    weights = counts.weight_bytes(1, 1) / 1e9
    cache = counts.cache_bytes(1)
    return (
        f"ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s, product {ceilings.product_ops_per_s / 1e12:.1f} "
        f"TFLOP/s{'' if eight is None else f', 8-bit {eight / 1e12:.1f}'}\n"
        f"model: {weights:.3f} GB of weights read for one token, {counts.weight_ops(1, 1) / 1e9:.2f} GFLOP a token, "
        f"KV {cache / 1e3:.1f} kB a token"
    )


def render_measured(item: Measured) -> str:
    """Two lines: the figure beside its limit, and the breakdown of a step."""
    unit = UNITS[item.work.figure]
    spread = "" if len(item.runs) == 1 else f" ({_number(min(item.runs))}..{_number(max(item.runs))})"
    limit = ""
    if item.limit is not None and item.share is not None:
        limit = f"  {item.share:5.1%} of {_number(item.limit)} ({item.bound})"
    return (
        f"{item.work.name:<6} {item.work.summary:<42} {_number(item.figure):>9} {unit}{spread}{limit}"
        f"  ttft {item.ttft_ms:.1f} ms  wall {item.wall_s:.3f} s\n"
        f"       {render_breakdown(item.steps)}"
    )


def render_profile(found: StepProfile, most: int) -> str:
    """Busy time, then the `most` longest kernels, one a line."""
    lines = [f"       busy {found.busy_ms:.3f} ms a step in {found.calls:.0f} kernels ({found.steps} steps)"]
    lines += [f"         {k.ms:8.4f} ms {k.calls:6.1f} x  {k.name[:110]}" for k in found.kernels[:most]]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3f}"
