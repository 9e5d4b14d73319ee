"""What a process has used, as metric values."""

from __future__ import annotations

import os
import sys


def process_values() -> dict[str, float]:
    """process_cpu_seconds: of all threads, since the start. process_resident_bytes: memory that it holds now (its peak
    where the system does not tell)."""
    times = os.times()
    return {"process_cpu_seconds": times.user + times.system, "process_resident_bytes": resident_bytes()}


def resident_bytes() -> float:
    """Resident memory of this process."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
