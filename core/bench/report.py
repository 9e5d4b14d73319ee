"""What a benchmark run found: per-request records to a summary, a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class RequestRecord:
    """Times of one request, in seconds since the run began.

    gaps_s: time between successive pieces of output after the first. error: why it failed, or None.
    """

    start_s: float
    first_token_s: float = math.nan
    end_s: float = math.nan
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    error: str | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between closest ranks; NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = (len(ordered) - 1) * share
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(records: Sequence[RequestRecord], wall_s: float) -> dict[str, Any]:
    """Totals, rates (per second of wall time) and latency percentiles in milliseconds."""
    good = [record for record in records if record.error is None]
    prompt = sum(record.prompt_tokens for record in good)
    output = sum(record.output_tokens for record in good)
    cached = sum(record.cached_tokens for record in good)
    summary: dict[str, Any] = {
        "requests": len(records),
        "failed": len(records) - len(good),
        "wall_s": round(wall_s, 4),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "cached_tokens": cached,
        "cache_hit_rate": round(cached / prompt, 4) if prompt else 0.0,
        "requests_per_s": round(len(good) / wall_s, 3),
        "input_tokens_per_s": round(prompt / wall_s, 2),
        "output_tokens_per_s": round(output / wall_s, 2),
    }
    series = {
        "ttft_ms": [record.first_token_s - record.start_s for record in good],
        "itl_ms": [gap for record in good for gap in record.gaps_s],
        "tpot_ms": [
            (record.end_s - record.first_token_s) / (record.output_tokens - 1)
            for record in good
            if record.output_tokens > 1
        ],
        "e2e_ms": [record.end_s - record.start_s for record in good],
    }
    for name, values in series.items():
        finite = [value * 1000 for value in values if math.isfinite(value)]
        summary[name] = {
            "mean": round(sum(finite) / len(finite), 3) if finite else None,
            **{
                label: round(percentile(finite, share), 3) if finite else None
                for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
            },
        }
    errors = [record.error for record in records if record.error]
    if errors:
        summary["first_error"] = errors[0]
    return summary


def render(summary: dict[str, Any], *, as_json: bool) -> str:
    """The summary for people, or as one JSON object."""
    if as_json:
        return json.dumps(summary)
    lines = []
    for name, value in summary.items():
        if isinstance(value, dict):
            cells = "  ".join(f"{label} {'-' if v is None else format(v, '.2f')}" for label, v in value.items())
            lines.append(f"  {name:<22}{cells}")
        else:
            lines.append(f"  {name:<22}{value}")
    return "\n".join(lines)
