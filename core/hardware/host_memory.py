"""How much memory this process may use, containers included."""

from __future__ import annotations

import os
from pathlib import Path

from core.interfaces.hardware import MemoryInfo


def host_memory(root: Path = Path("/")) -> MemoryInfo:
    """Total and available bytes: the machine's, or the tightest limit of the control groups this process is in.

    root: where proc and sys are looked for. Where neither can be read, what the C library knows.
    """
    total, available = _machine(root)
    for limit, used in _limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return MemoryInfo(total, min(available, total))


def _machine(root: Path) -> tuple[int, int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
        return kib["MemTotal"] * 1024, kib.get("MemAvailable", kib["MemTotal"]) * 1024
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every limited control group from this process's own up to the root."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[int, int]] = []
    for entry in entries:
        number, _, rest = entry.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # In a container the path is often the host's, and only the mount's root exists: missing folders are skipped.
        for depth in range(len(parts), -1, -1):
            limit = _limit(base.joinpath(*parts[:depth]), *files)
            if limit is not None:
                found.append(limit)
    return found


def _limit(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> tuple[int, int] | None:
    try:
        limit = int((folder / limit_file).read_text())  # "max" is no number: unlimited
        used = int((folder / usage_file).read_text())
    except (OSError, ValueError):
        return None
    try:
        # Page cache counts as used but is given back under pressure.
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == reclaimable:
                used -= int(value)
    except (OSError, ValueError):
        pass
    return limit, max(0, used)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity mask, cut by a control group's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return max(1, cores)
