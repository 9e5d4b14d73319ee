"""Which kernels the device runs in a step, and for how long: one more run of a workload under torch's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile, supported_activities

from core.bench.datasets import Conversation
from core.bench.offline import OfflineBench
from core.bench.timing import synchronize
from core.bench.workloads import Workload

# Decode steps that are looked at.
PROFILED_TOKENS = 24


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel's share of a step: milliseconds and calls, both means over the steps."""

    name: str
    ms: float
    calls: float


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Of decode steps, or of all steps where a workload asks for one token only. busy_ms: sum of all kernels; they run
    one after another on one stream, so a step that takes longer than that waits for the host."""

    steps: int
    busy_ms: float
    calls: float
    kernels: tuple[KernelTime, ...]


def profile_workload(bench: OfflineBench, work: Workload, draw: int) -> StepProfile:
    """Run the workload once more, with at most PROFILED_TOKENS decode steps under the profiler."""
    output_len = min(work.output_len, PROFILED_TOKENS + 1)
    conversations = [Conversation(prompt, output_len=output_len) for prompt in work.prompts(bench.vocab_size, draw)]
    activities = [a for a in supported_activities() if a is not ProfilerActivity.CPU] or [ProfilerActivity.CPU]
    profiler: Any = profile(activities=activities)
    first_step = bench.engine.steps

    def start() -> None:
        nonlocal first_step
        first_step = bench.engine.steps
        profiler.start()

    if output_len == 1:
        start()
    bench.run(conversations, temperature=work.temperature, after_first=None if output_len == 1 else start)
    synchronize(bench.runner.device)
    profiler.stop()
    return _read(profiler.key_averages(), max(1, bench.engine.steps - first_step))


def _read(events: Sequence[Any], steps: int) -> StepProfile:
    kernels = []
    for event in events:
        on_device = event.device_type.name != "CPU"
        spent_us = event.self_device_time_total if on_device else event.self_cpu_time_total
        if spent_us > 0 and not getattr(event, "is_user_annotation", False):
            kernels.append((on_device, KernelTime(event.key, spent_us / steps / 1e3, event.count / steps)))
    # Where there is a device, what the host did is another story.
    any_device = any(on_device for on_device, _ in kernels)
    found = sorted((k for on_device, k in kernels if on_device or not any_device), key=lambda kernel: -kernel.ms)
    return StepProfile(steps, sum(k.ms for k in found), sum(k.calls for k in found), tuple(found))
