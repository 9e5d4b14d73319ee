"""Time of device work: the sum of its kernels, so that what the host does between launches does not count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

# Seconds of device work to measure, at most about; and calls, at least and at most.
BUDGET_S, LEAST, MOST = 0.05, 3, 50


def busy_s(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Seconds of device work of one call, the mean over several. calls: the same work on different memory, taken in
    turn, so that a cache which holds one copy does not make it look faster than a step would find it.

    Without a profiler for the device, and on a CPU: wall time, the best of several calls.
    """
    for call in calls[:2]:
        call()
    synchronize(device)
    begin = time.perf_counter()
    calls[-1]()
    synchronize(device)
    once_s = max(time.perf_counter() - begin, 1e-7)
    count = max(LEAST, min(MOST, int(BUDGET_S / once_s)))
    activities = supported_activities() - {ProfilerActivity.CPU}
    if device.type == "cpu" or not activities:
        return min(_wall_s(calls[index % len(calls)], device) for index in range(count))
    with profile(activities=list(activities)) as profiler:
        for index in range(count):
            calls[index % len(calls)]()
        synchronize(device)
    total_us = sum(event.self_device_time_total for event in _on_device(profiler))
    return total_us / count / 1e6


def _on_device(profiler: Any) -> list[Any]:
    return [event for event in profiler.key_averages() if event.device_type.name != "CPU"]


def _wall_s(call: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
