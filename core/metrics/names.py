"""Names and descriptions of the values that an engine sends: `Stats.values` of core.engine.messages.

A value that stands in neither table is shown all the same, so that a scheduler, a grammar pool or a device can add
numbers of its own: as a counter if its name ends in `_total`, else as a gauge.
"""

from __future__ import annotations

ENGINE_COUNTERS = {
    "steps": "Engine steps that have finished.",
    "failed_steps": "Engine steps that failed.",
    "prefill_tokens": "Prompt tokens computed, those of preempted requests again.",
    "decode_tokens": "Tokens computed one at a time.",
    "cached_prompt_tokens": "Prompt tokens that the prefix cache saved.",
    "preemptions": "Requests put back into the queue, for lack of memory or for one of higher priority.",
    "step_seconds": "Seconds spent in steps.",
    "schedule_seconds": "Seconds spent in the scheduler.",
    "build_seconds": "Seconds spent on turning plans into inputs of the model.",
    "launch_seconds": "Seconds spent on queueing steps; where steps are not asynchronous, on computing them.",
    "wait_seconds": "Seconds blocked until the device was done.",
    "output_seconds": "Seconds spent on turning the device's output into results.",
    "device_seconds": "Seconds that steps took on the device.",
}
ENGINE_GAUGES = {
    "running_requests": "Requests that hold KV memory.",
    "waiting_requests": "Requests in the queue.",
    "kv_pages": "KV pages of a cache group.",
    "kv_pages_free": "KV pages that hold nothing.",
    "kv_pages_cached": "KV pages of cached prefixes that can be evicted.",
    "kv_usage_ratio": "Share of KV pages that requests hold, 0 to 1.",
    "cache_hit_ratio": "Share of prompt tokens served from the prefix cache since the start, 0 to 1.",
    "prefill_tokens_per_second": "Prompt tokens computed in the last second or so.",
    "decode_tokens_per_second": "Tokens generated in the last second or so.",
}
# Values that are shown under another name, with a label.
PER_PROCESS = ("process_cpu_seconds", "process_resident_bytes", "log_lines_lost")


def other_values(values: dict[str, float] | None) -> dict[str, tuple[str, bool]]:
    """Those that stand in no table: name as sent -> (name of the metric without `_total`, whether it is a counter)."""
    known = ENGINE_COUNTERS.keys() | ENGINE_GAUGES.keys() | set(PER_PROCESS)
    return {
        name: (name.removesuffix("_total"), name.endswith("_total"))
        for name in sorted(values or {})
        if name not in known and name.isidentifier()
    }
