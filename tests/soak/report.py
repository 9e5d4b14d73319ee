"""What came of a soak: counts by route and status, latencies, problems; as a table and as JSON."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

MOST_SHOWN = 20


@dataclass
class Report:
    """Filled while a soak runs. problems: leaks, requests without an answer, statuses that must not be."""

    seed: int
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    manners: Counter[str] = field(default_factory=Counter)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, route: str, status: int, seconds: float, manner: str) -> None:
        """One request that ended, by its status or by its client (0)."""
        self.statuses[route][str(status) if status else "left"] += 1
        self.manners[manner] += 1
        if status:
            self.seconds[route].append(seconds)

    @property
    def num_requests(self) -> int:
        return sum(self.manners.values())

    def data(self) -> dict[str, Any]:
        """For JSON."""
        routes = {
            route: {"statuses": dict(sorted(counts.items())), **_latencies(self.seconds[route])}
            for route, counts in sorted(self.statuses.items())
        }
        return {
            "seed": self.seed, "num_requests": self.num_requests, "routes": routes, "manners": dict(self.manners),
            "phases": self.phases, "problems": self.problems,
        }  # fmt: skip

    def json(self) -> str:
        return json.dumps(self.data(), indent=1)

    def table(self) -> str:
        """For people."""
        rows = [("route", "p50 ms", "p95 ms", "max ms", "statuses")]
        for route, told in self.data()["routes"].items():
            times = [f"{told[name] * 1000:.0f}" if told else "" for name in ("p50_s", "p95_s", "max_s")]
            rows.append((route, *times, "  ".join(f"{status}: {count}" for status, count in told["statuses"].items())))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4])) for row in rows
        ]
        lines += ["", "clients: " + "  ".join(f"{name}: {count}" for name, count in sorted(self.manners.items()))]
        lines += [f"{name}: " + "  ".join(f"{k}: {v}" for k, v in told.items()) for name, told in self.phases.items()]
        lines.append(f"\nseed {self.seed}, {self.num_requests} requests, {len(self.problems)} problems")
        lines += [f"  {problem}" for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            lines.append(f"  and {len(self.problems) - MOST_SHOWN} more")
        return "\n".join(lines)


def _latencies(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {"p50_s": round(at(0.5), 4), "p95_s": round(at(0.95), 4), "max_s": round(ordered[-1], 4)}
