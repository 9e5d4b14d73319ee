"""Compute capabilities of this machine's GPUs, asked of the driver's management library.

CUDA itself would do, but the first call takes hundreds of megabytes and a second, and backends are chosen in processes
that never compute.
"""

from __future__ import annotations

import ctypes
from functools import cache

NEEDED = (9, 0)


@cache
def compute_capabilities() -> tuple[tuple[int, int], ...]:
    """Of each GPU; empty where there is no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        return tuple(found for index in range(count.value) if (found := _capability(nvml, index)) is not None)
    finally:
        nvml.nvmlShutdown()


def _capability(nvml: ctypes.CDLL, index: int) -> tuple[int, int] | None:
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    return major.value, minor.value


def unsuitable() -> str | None:
    """Why no GPU of this machine runs FlashAttention-3, or None."""
    found = compute_capabilities()
    if NEEDED in found:
        return None
    have = ", ".join(f"{major}.{minor}" for major, minor in sorted(set(found))) or "no NVIDIA GPU"
    return (
        f"it needs a GPU of compute capability {NEEDED[0]}.{NEEDED[1]} (H100, H200 and their kin), and here is {have}"
    )
