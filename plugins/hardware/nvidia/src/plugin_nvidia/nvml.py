"""The driver's management library (NVML), asked through ctypes: it makes no CUDA context and needs no torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. capability: compute capability, e.g. (9, 0)."""

    name: str
    total_bytes: int
    capability: tuple[int, int]


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def visible_gpus(environment: Mapping[str, str] = os.environ, library: Any = None) -> tuple[list[Gpu], str]:
    """The devices that this process may use, in CUDA's order as far as the driver's numbers tell, and if there is none,
    why. library: NVML as ctypes loads it; None loads it."""
    if library is None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            return [], f"no NVIDIA driver: {error}"
    if code := library.nvmlInit_v2():
        return [], f"the NVIDIA driver does not answer (NVML error {code}{_text(library, code)})"
    try:
        return _devices(library, environment.get(_VISIBLE))
    finally:
        library.nvmlShutdown()


def _devices(library: Any, visible: str | None) -> tuple[list[Gpu], str]:
    count = ctypes.c_uint()
    if code := library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return [], f"the NVIDIA driver does not list its devices (NVML error {code}{_text(library, code)})"
    if not count.value:
        return [], "the NVIDIA driver knows no device"
    if visible is None:
        return [_gpu(library, _by_index(library, index)) for index in range(count.value)], ""
    found: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        handle = _by_entry(library, entry, count.value)
        if handle is None:  # as CUDA reads it: what follows an entry that names nothing is not seen either
            break
        found.append(_gpu(library, handle))
    return found, "" if found else f"{_VISIBLE}={visible!r} hides every device"


def _by_entry(library: Any, entry: str, count: int) -> ctypes.c_void_p | None:
    """A device by number or by (the beginning of) its UUID."""
    if entry.isdigit():
        return _by_index(library, int(entry)) if int(entry) < count else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByUUID(entry.encode(), ctypes.byref(handle)) == 0:
        return handle
    for index in range(count):
        handle, uuid = _by_index(library, index), ctypes.create_string_buffer(_NAME_BYTES)
        if not library.nvmlDeviceGetUUID(handle, uuid, _NAME_BYTES) and uuid.value.decode().startswith(entry):
            return handle
    return None


def _by_index(library: Any, index: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return handle


def _gpu(library: Any, handle: ctypes.c_void_p) -> Gpu:
    """What could not be read is empty or 0."""
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvmlDeviceGetName(handle, name, _NAME_BYTES)
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(name.value.decode(errors="replace"), memory.total, (major.value, minor.value))


def _text(library: Any, code: int) -> str:
    library.nvmlErrorString.restype = ctypes.c_char_p
    told = library.nvmlErrorString(code)
    return f": {told.decode()}" if told else ""
